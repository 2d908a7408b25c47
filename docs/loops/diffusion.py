# SPDX-License-Identifier: Apache-2.0
"""Stable-Diffusion-like fine-tuning: a frozen VAE and text encoder, a noise scheduler, the UNet trained."""

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

import bsmodel

DOWN, UP = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4


class Pipeline(nn.Module):
    def __init__(self, unet, vae, layers):
        super().__init__()
        self.unet = UNet2DConditionModel(block_out_channels=unet, cross_attention_dim=768, attention_head_dim=8)
        self.vae = AutoencoderKL(down_block_types=DOWN, up_block_types=UP, block_out_channels=vae, layers_per_block=2).requires_grad_(False)
        text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=layers, num_attention_heads=12)
        self.text = CLIPTextModel(text).requires_grad_(False)


class Loop:
    def __init__(self, model):
        self.optimizer = torch.optim.AdamW(model.unet.parameters(), lr=1e-5)
        self.noise = DDPMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear")
        model.vae.to(torch.float16)
        model.text.to(torch.float16)


def step(model, loop, batch):
    images, ids = batch[0].to("cuda", torch.float16), batch[1].to("cuda")
    with torch.no_grad():
        latents = model.vae.encode(images).latent_dist.sample() * model.vae.config.scaling_factor
        states = model.text(ids)[0]
    noise = torch.randn_like(latents)
    times = torch.randint(0, loop.noise.config.num_train_timesteps, (len(latents),), device="cuda").long()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        predicted = model.unet(loop.noise.add_noise(latents.float(), noise.float(), times), times, states, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), noise.float())
    loss.backward()
    nn.utils.clip_grad_norm_(model.unet.parameters(), 1.0)
    loop.optimizer.step()
    loop.optimizer.zero_grad()


def workload(side=256, unet=(320, 640, 1280, 1280), vae=(128, 256, 512, 512), layers=12):
    def batch(size):
        return torch.zeros(size, 3, side, side), torch.zeros(size, 77, dtype=torch.long)

    return bsmodel.Workload(lambda: Pipeline(unet, vae, layers), batch, setup=Loop, step=step, name="diffusion")
