"""Swin Transformer (Liu et al., arXiv 2103.14030), with Microsoft's parameter names and timm's outputs.

Letters in shape comments: B images, H x W the grid of tokens, L = H*W, C channels, M window size, N = M*M tokens per
window, nW windows per image. Tokens are `[B, L, C]` in raster order at every module boundary, so a hook on any
`norm1` or `norm2` sees the image and not a shuffled copy of it.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """Cuts `[B, H, W, C]` into windows `[B*nW, M, M, C]`, raster order within each image."""
    (b, h, w, c), m = x.shape, window_size
    return x.view(b, h // m, m, w // m, m, c).transpose(2, 3).reshape(-1, m, m, c)


def relative_position_index(window_size: int) -> Tensor:
    """The row in the bias table for every pair of tokens in a window: `[N, N]` int64 in [0, (2M-1)^2)."""
    places = torch.cartesian_prod(torch.arange(window_size), torch.arange(window_size))  # [N, 2], row and column
    dy, dx = (places[:, None] - places[None, :] + window_size - 1).unbind(-1)  # each [N, N] in [0, 2M-2]
    return dy * (2 * window_size - 1) + dx


def shifted_window_mask(height: int, width: int, window_size: int, shift_size: int) -> Tensor:
    """The attention mask of shifted windows, `[nW, N, N]`: -inf for tokens that only the cyclic shift made neighbours.

    All other pairs have 0 (section 3.2). Microsoft's code uses -100, which leaves weights of exp(-100): the same
    logits, but subnormal numbers, whose products take a CPU several times as long. -inf leaves zeros.
    """
    region = torch.zeros(1, height, width, 1)
    cuts = (slice(0, -window_size), slice(-window_size, -shift_size), slice(-shift_size, None))
    for number, (rows, columns) in enumerate((r, c) for r in cuts for c in cuts):
        region[:, rows, columns] = number
    windows = window_partition(region, window_size).flatten(1)  # [nW, N]
    return torch.where(windows[:, None, :] == windows[:, :, None], 0.0, float("-inf"))


def window_order(side: int, window_size: int, shift_size: int) -> Tensor:
    """The raster position of every token of the shifted windows, window by window: `[side * side]` int64."""
    raster = torch.arange(side * side).view(1, side, side, 1)
    return window_partition(torch.roll(raster, (-shift_size, -shift_size), (1, 2)), window_size).flatten()


class Reorder(torch.autograd.Function):
    """`[B, L, C]` with its tokens in another order. Its backward gathers; that of `index_select` would scatter.

    Args:
        order: `[L]`, where each token of the result comes from.
        inverse: `[L]`, its inverse.
    """

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx, grad: Tensor):
        order, inverse = ctx.saved_tensors
        return Reorder.apply(grad, inverse, order), None, None


def add_branch(x: Tensor, branch: Callable[[Tensor], Tensor], keep: Tensor | None) -> Tensor:
    """`x + branch(x)` with stochastic depth (Huang et al., arXiv 1603.09382).

    Only the kept samples go through the branch, which gives the same result and saves the cost of the others.

    Args:
        x: `[B, ...]`.
        keep: `[B]` on the CPU, 0 for a dropped sample and 1/(1-p) for a kept one, with one p; None keeps all.
    """
    if keep is None:
        return x + branch(x)
    if torch.compiler.is_compiling():  # a shape that changes every step would mean a recompilation every step
        return x + branch(x) * keep.to(x).view(-1, *[1] * (x.ndim - 1))
    kept, scale = keep.nonzero()[:, 0], keep.max().item()  # on the CPU, where masks are drawn: no synchronisation
    if len(kept) == len(keep):
        return torch.add(x, branch(x), alpha=scale)
    kept = kept.to(x.device, non_blocking=True)
    # With no sample kept the branch runs on zero rows, so that its parameters have a gradient (of zero) on every rank.
    return x.index_add(0, kept, branch(x.index_select(0, kept)).to(x.dtype), alpha=scale)


def run(part: nn.Module, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """`function(*inputs)`; in training with `selective_checkpoint`, backward recomputes its intermediate results.

    The recomputation stops at the last result that backward needs, so a final matrix product is not repeated.
    """
    if part.selective_checkpoint and part.training and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


class Mlp(nn.Module):
    """Linear, GELU, Linear on `[..., C]`; `selective_checkpoint` recomputes GELU in backward."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0, selective_checkpoint: bool = False):
        super().__init__()
        self.selective_checkpoint = selective_checkpoint
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return run(self, self._project, self.fc1(x))

    def _project(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(x))))


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learned bias for every relative position (equation 4).

    `selective_checkpoint` recomputes scores and softmax in backward.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        window_size: int,
        num_heads: int,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        selective_checkpoint: bool = False,
    ):
        super().__init__()
        self.dim, self.window_size, self.num_heads = dim, window_size, num_heads
        self.selective_checkpoint = selective_checkpoint
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.register_buffer("relative_position_index", relative_position_index(window_size), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(drop)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention within each window, `[B*nW, N, C]`.

        Args:
            x: `[B*nW, N, C]`.
            mask: `[nW, N, N]`, added to the scores; None for windows that are not shifted.
        """
        return self.proj_drop(self.proj(run(self, self._attend, self.qkv(x), mask)))

    def _attend(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """`[B*nW, N, 3C]` -> `[B*nW, N, C]`."""
        windows, n = qkv.shape[:2]
        qkv = qkv.view(windows, n, 3, self.num_heads, self.dim // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.contiguous().unbind(0)  # each [B*nW, heads, N, C/heads]; this copy avoids three others
        # A GPU's fused kernels never store the scores; on a CPU, plain matrix products are twice as fast.
        attend = self._fused if qkv.is_cuda and windows else self._plain
        return attend(q, k, v, self._bias(mask)).transpose(-3, -2).reshape(windows, n, self.dim)

    def _plain(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1)
        scores = torch.add(bias, scores.view(-1, *bias.shape), alpha=self.scale)
        return scores.softmax(dim=-1).view(*q.shape[:3], q.shape[2]).to(v.dtype) @ v

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        # The kernel copies a bias that it has to pad. With all windows beside the heads, that is one bias per image.
        bias = bias.to(q.dtype).flatten(0, -3)[None]  # [1, heads, N, N], or with a mask [1, nW*heads, N, N]
        q, k, v = (x.view(-1, bias.shape[1], *x.shape[2:]) for x in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return attended.unflatten(1, (-1, self.num_heads))  # [B, nW, heads, N, C/heads]

    def _bias(self, mask: Tensor | None) -> Tensor:
        """The relative position bias of the attention scores: `[heads, N, N]`, or with a mask `[nW, heads, N, N]`."""
        bias = self.relative_position_bias_table.t().index_select(1, self.relative_position_index.flatten())
        bias = bias.view(-1, *self.relative_position_index.shape)
        return bias if mask is None else bias + mask[:, None]


class SwinTransformerBlock(nn.Module):
    """W-MSA (shift_size 0) or SW-MSA, then an MLP, each pre-normed and with a residual (equation 3)."""

    def __init__(
        self,
        dim: int,
        resolution: int,
        num_heads: int,
        window_size: int,
        shift_size: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        selective_checkpoint: bool = False,
    ):
        super().__init__()
        if resolution <= window_size:  # one window holds the whole grid, so there is nothing to shift
            window_size, shift_size = resolution, 0
        self.dim, self.resolution, self.window_size, self.shift_size = dim, resolution, window_size, shift_size
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window_size, num_heads, qkv_bias, qk_scale, drop, selective_checkpoint)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop, selective_checkpoint)
        mask = shifted_window_mask(resolution, resolution, window_size, shift_size) if shift_size else None
        self.register_buffer("attn_mask", mask, persistent=False)
        order = window_order(resolution, window_size, shift_size)
        self.register_buffer("window_order", order, persistent=False)
        self.register_buffer("raster_order", order.argsort(), persistent=False)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """`[B, L, C]` -> `[B, L, C]`. `keep`: `[2, B]`, stochastic depth of attention and of MLP, or None."""
        keep_attention, keep_mlp = (None, None) if keep is None else keep
        x = add_branch(x, self._attend, keep_attention)
        return add_branch(x, lambda tokens: self.mlp(self.norm2(tokens)), keep_mlp)

    def _attend(self, x: Tensor) -> Tensor:
        """Attention in (shifted) windows. One gather in each direction replaces rolling and partitioning."""
        tokens = Reorder.apply(self.norm1(x), self.window_order, self.raster_order)
        windows = self.attn(tokens.view(-1, self.window_size**2, self.dim), self.attn_mask)
        return Reorder.apply(windows.view(x.shape), self.raster_order, self.window_order)


class PatchMerging(nn.Module):
    """Joins each 2x2 group of tokens to 4C channels and projects them to 2C: `[B, L, C]` -> `[B, L/4, 2C]`."""

    def __init__(self, dim: int, resolution: int):
        super().__init__()
        self.dim, self.resolution = dim, resolution
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, side = x.shape[0], self.resolution
        # in Microsoft's order: top left, bottom left, top right, bottom right
        x = x.view(b, side // 2, 2, side // 2, 2, self.dim).permute(0, 1, 3, 4, 2, 5)
        x = x.reshape(b, side * side // 4, 4 * self.dim)
        return self.reduction(self.norm(x))


class BasicLayer(nn.Module):
    """A stage: blocks that alternate plain and shifted windows, then patch merging (not in the last stage)."""

    def __init__(self, dim: int, resolution: int, depth: int, window_size: int, merge: bool, **block):
        super().__init__()
        self.blocks: Any = nn.ModuleList(  # Any: a ModuleList does not tell the type of its blocks
            SwinTransformerBlock(
                dim, resolution, window_size=window_size, shift_size=window_size // 2 if index % 2 else 0, **block
            )
            for index in range(depth)
        )
        self.downsample = PatchMerging(dim, resolution) if merge else None

    def forward(self, x: Tensor, keep: Tensor | None = None, use_checkpoint: bool = False) -> Tensor:
        """`[B, L, C]` -> `[B, L, C]`, or after merging `[B, L/4, 2C]`. `keep`: `[depth, 2, B]` or None."""
        for index, block in enumerate(self.blocks):
            kept = None if keep is None else keep[index]
            # Masks are passed in: drawn inside, they would differ between the forward pass and the recomputation.
            x = checkpoint(block, x, kept, use_reentrant=False) if use_checkpoint else block(x, kept)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """Images `[B, 3, S, S]` -> tokens `[B, L, C]`: a convolution whose stride is its kernel size, then a norm."""

    def __init__(self, img_size: int, patch_size: int, embed_dim: int, patch_norm: bool):
        super().__init__()
        self.img_size, self.patches = img_size, img_size // patch_size
        self.proj = nn.Conv2d(3, embed_dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(embed_dim) if patch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.img_size, self.img_size):
            raise ValueError(f"images of {tuple(x.shape[-2:])} pixels; the model was built for {self.img_size}")
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))


class SwinTransformer(nn.Module):
    """Swin for image classification: normalised images `[B, 3, img_size, img_size]` -> logits `[B, num_classes]`.

    Args:
        img_size: side of the input in pixels; the grid of every stage must be one window or divide into windows.
        window_size: M in the paper, in tokens.
        drop_rate: dropout on embeddings, projections and MLPs.
        drop_path_rate: chance of dropping a sample in the last block; it grows linearly from 0 over the blocks.
        ape: add a learned absolute position embedding.
        patch_norm: norm after the patch embedding.
        use_checkpoint: recompute each block in backward.
        selective_checkpoint: recompute GELU and attention scores in backward, for a quarter less memory.
    """

    def __init__(
        self,
        *,
        img_size: int = 224,
        patch_size: int = 4,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        ape: bool = False,
        patch_norm: bool = True,
        use_checkpoint: bool = False,
        selective_checkpoint: bool = False,
    ):
        super().__init__()
        self.num_classes, self.use_checkpoint = num_classes, use_checkpoint
        self.num_features = embed_dim * 2 ** (len(depths) - 1)
        self.drop_path_rates = [drop_path_rate * i / max(1, sum(depths) - 1) for i in range(sum(depths))]  # per block
        self.patch_embed = PatchEmbed(img_size, patch_size, embed_dim, patch_norm)
        grid = self.patch_embed.patches
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, grid * grid, embed_dim)) if ape else None
        self.pos_drop = nn.Dropout(drop_rate)
        self.layers: Any = nn.ModuleList(
            BasicLayer(
                embed_dim * 2**stage,
                grid // 2**stage,
                depth,
                window_size,
                merge=stage + 1 < len(depths),
                num_heads=heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                qk_scale=qk_scale,
                drop=drop_rate,
                selective_checkpoint=selective_checkpoint,
            )
            for stage, (depth, heads) in enumerate(zip(depths, num_heads, strict=True))
        )
        self.norm = nn.LayerNorm(self.num_features)
        self.head = nn.Linear(self.num_features, num_classes)
        self.apply(_init_weights)
        if self.absolute_pos_embed is not None:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def forward_features(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Images -> normalised tokens of the last stage `[B, L, num_features]`."""
        if keep is None and self.training:
            keep = self.draw_drop_path(x.shape[0])
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            x = x + self.absolute_pos_embed
        x = self.pos_drop(x)
        if keep is not None and torch.compiler.is_compiling():
            keep = keep.to(x.device)  # one copy instead of one per branch
        recompute = self.use_checkpoint and self.training and torch.is_grad_enabled()
        keeps = [None] * len(self.layers) if keep is None else keep.split([len(layer.blocks) for layer in self.layers])
        for layer, kept in zip(self.layers, keeps, strict=True):
            x = layer(x, kept, recompute)
        return self.norm(x)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits. `keep`: columns of `draw_drop_path`; None draws them in training and keeps all samples in eval."""
        return self.head(self.forward_features(x, keep).mean(dim=1))

    def draw_drop_path(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Stochastic depth of a batch: `[blocks, 2, B]` on the CPU, 0 or 1/(1-p); None when all rates are 0."""
        if max(self.drop_path_rates) == 0:
            return None
        survival = 1 - torch.tensor(self.drop_path_rates).view(-1, 1, 1)
        return (torch.rand(len(survival), 2, batch_size, generator=generator) < survival) / survival

    def no_weight_decay(self) -> set[str]:
        """Names (or their last parts) of the parameters that have no weight decay."""
        return {"absolute_pos_embed", "relative_position_bias_table"}

    def layer_index(self, name: str) -> int:
        """The depth of a parameter for layer-wise rates: 0 for the embedding, then 1 per block, then the head."""
        parts = name.split(".")
        if parts[0] == "layers":
            before = sum(len(layer.blocks) for layer in self.layers[: int(parts[1])])
            inside = int(parts[3]) if parts[2] == "blocks" else len(self.layers[int(parts[1])].blocks) - 1
            return before + inside + 1
        return 0 if parts[0] in ("patch_embed", "absolute_pos_embed") else len(self.drop_path_rates) + 1

    def flops(self) -> int:
        """Multiply-adds per image, counted as in Microsoft's code (4.5 G for Swin-T at 224 pixels, Table 1)."""
        embed = self.patch_embed
        norm = embed.proj.out_channels if isinstance(embed.norm, nn.LayerNorm) else 0
        total = embed.patches**2 * (embed.proj.weight.numel() + norm)
        for layer in self.layers:
            for block in layer.blocks:
                tokens, window, dim = block.resolution**2, block.window_size**2, block.dim
                total += tokens * (4 * dim * dim + 2 * window * dim)  # qkv, proj; scores, weighted values (equation 2)
                total += 2 * tokens * dim * (block.mlp.fc1.out_features + 1)  # the MLP and two norms
            if layer.downsample is not None:
                total += tokens * dim * (2 * dim + 1)  # reduction and norm
        return total + tokens * self.num_features + self.num_features * self.num_classes


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
