# SPDX-License-Identifier: Apache-2.0
"""What a GPU is and what its runtime and libraries take of it, as strict schemas, and how to find one in the catalogue."""

from bsmodel.hardware.gpu import CALIBRATION, DEFAULT_GPUS, NO_FIGURES, SEARCH_PATH_VARIABLE, Gpu, defaults, gpus_in, schema
from bsmodel.hardware.links import PROTOCOLS, Algorithm, End, Generation, Network, between_nodes, generation, link, nccl, network_named, networks
from bsmodel.hardware.rows import Source, catalogue_folder
from bsmodel.hardware.runtime import Communicator, Context, Kernels, Runtime, runtime
from bsmodel.hardware.workspaces import KINDS, PLANNED, WorkspaceRule, rule_of

__all__ = (
    "CALIBRATION",
    "DEFAULT_GPUS",
    "KINDS",
    "NO_FIGURES",
    "PLANNED",
    "PROTOCOLS",
    "SEARCH_PATH_VARIABLE",
    "Algorithm",
    "Communicator",
    "Context",
    "End",
    "Generation",
    "Gpu",
    "Kernels",
    "Network",
    "Runtime",
    "Source",
    "WorkspaceRule",
    "between_nodes",
    "catalogue_folder",
    "defaults",
    "generation",
    "gpus_in",
    "link",
    "nccl",
    "network_named",
    "networks",
    "rule_of",
    "runtime",
    "schema",
)
