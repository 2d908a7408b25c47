# SPDX-License-Identifier: Apache-2.0
"""Makes fake tensors take the paths that PyTorch takes on CUDA, on a machine without CUDA."""
