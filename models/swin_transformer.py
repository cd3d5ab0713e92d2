"""Swin Transformer (Liu et al., arXiv 2103.14030), with Microsoft's parameter names and timm's outputs.

Letters in shape comments: B images, H x W the grid of tokens, L = H*W, C channels, M window size, N = M*M tokens of a
window, nW windows of an image. Tokens are `[B, L, C]` in raster order at every module boundary, so a hook on any
`norm1` or `norm2` sees the image and not a shuffled copy of it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Table 7 of the paper. The rest of a name (patch4_window7_224) is the input it is built for.
VARIANTS: dict[str, dict] = {
    "tiny": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "small": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "base": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
    "large": {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)},
}


def window_partition(x: Tensor, window_size: int) -> Tensor:
    """Cuts `[B, H, W, C]` into windows `[B*nW, M, M, C]`, raster order within each image."""
    b, h, w, c = x.shape
    m = window_size
    return x.view(b, h // m, m, w // m, m, c).transpose(2, 3).reshape(-1, m, m, c)


def window_reverse(windows: Tensor, window_size: int, height: int, width: int) -> Tensor:
    """Puts windows `[B*nW, M, M, C]` together to `[B, H, W, C]`; the inverse of `window_partition`."""
    m, c = window_size, windows.shape[-1]
    x = windows.view(-1, height // m, width // m, m, m, c).transpose(2, 3)
    return x.reshape(-1, height, width, c)


def relative_position_index(window_size: int) -> Tensor:
    """For every pair of tokens of a window, its row in the bias table: `[N, N]` int64 in [0, (2M-1)^2)."""
    m = window_size
    rows, columns = torch.meshgrid(torch.arange(m), torch.arange(m), indexing="ij")
    y, x = rows.flatten(), columns.flatten()  # [N]
    dy = y[:, None] - y[None, :] + m - 1  # [N, N] in [0, 2M-2]
    dx = x[:, None] - x[None, :] + m - 1
    return dy * (2 * m - 1) + dx


def shifted_window_mask(height: int, width: int, window_size: int, shift_size: int) -> Tensor:
    """What keeps tokens apart that only the cyclic shift made neighbours: `[nW, N, N]`, 0 or -inf (section 3.2).

    Microsoft's -100 leaves weights of exp(-100) behind: the same logits, but subnormal numbers, with which a CPU takes
    a product several times as long. -inf leaves zeros.
    """
    region = torch.zeros(1, height, width, 1)
    cuts = (slice(0, -window_size), slice(-window_size, -shift_size), slice(-shift_size, None))
    for number, (rows, columns) in enumerate((r, c) for r in cuts for c in cuts):
        region[:, rows, columns] = number
    windows = window_partition(region, window_size).flatten(1)  # [nW, N]
    return torch.where(windows[:, None, :] == windows[:, :, None], 0.0, float("-inf"))


def window_order(side: int, window_size: int, shift_size: int) -> Tensor:
    """For every token of the shifted windows, window by window, its place in the raster: `[side * side]` int64."""
    raster = torch.arange(side * side).view(1, side, side, 1)
    return window_partition(torch.roll(raster, (-shift_size, -shift_size), (1, 2)), window_size).flatten()


class Reorder(torch.autograd.Function):
    """`[B, L, C]` with its tokens in another order. The gradient is gathered back, which autograd's own would scatter.

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


def add_branch(x: Tensor, branch: nn.Module, keep: Tensor | None) -> Tensor:
    """`x + branch(x)`, with stochastic depth (Huang et al., arXiv 1603.09382) over the images.

    Only the kept images go through the branch, which is exact and saves their share of its cost.

    Args:
        x: `[B, ...]`.
        keep: `[B]` on the CPU, 0 for a dropped image and 1/(1-p), one number, for a kept one; None keeps all.
    """
    if keep is None:
        return x + branch(x)
    if torch.compiler.is_compiling():  # a shape that changes every step would recompile every step
        return x + branch(x) * keep.to(x).view(-1, *[1] * (x.ndim - 1))
    kept, scale = keep.nonzero()[:, 0], keep.max().item()  # on the CPU, where masks are drawn: no synchronisation
    if len(kept) == len(keep):
        return torch.add(x, branch(x), alpha=scale)
    kept = kept.to(x.device, non_blocking=True)
    # With nobody kept the branch runs on zero rows: its parameters get a zero gradient, as on any other rank.
    return x.index_add(0, kept, branch(x.index_select(0, kept)).to(x.dtype), alpha=scale)


def run(part: nn.Module, function: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """`function(*inputs)`. Where `part` has `selective_checkpoint` and trains, backward recomputes its inner results.

    The recomputation ends at the last result that backward needs: a last matrix product is not repeated.
    """
    if part.selective_checkpoint and part.training and torch.is_grad_enabled():
        return checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


class Mlp(nn.Module):
    """Linear, GELU, Linear on `[..., C]`; `selective_checkpoint` computes GELU again in backward."""

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

    `selective_checkpoint` computes scores and softmax again in backward.
    """

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
        """Attends within each window.

        Args:
            x: `[B*nW, N, C]`.
            mask: `[nW, N, N]`, added to the scores; None where windows were not shifted.
        """
        return self.proj_drop(self.proj(run(self, self._attend, self.qkv(x), mask)))

    def _attend(self, qkv: Tensor, mask: Tensor | None) -> Tensor:
        """`[B*nW, N, 3C]` -> `[B*nW, N, C]`."""
        windows, n = qkv.shape[:2]
        qkv = qkv.view(windows, n, 3, self.num_heads, self.dim // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.contiguous().unbind(0)  # each [B*nW, heads, N, C/heads]; one copy here, or three in the products
        # A GPU's fused kernels never write the scores down; on a CPU plain products are twice as fast.
        attend = self._fused if qkv.is_cuda and windows else self._plain
        return attend(q, k, v, self._bias(mask)).transpose(1, 2).reshape(windows, n, self.dim)

    def _plain(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1)
        scores = torch.add(bias, scores.view(-1, *bias.shape), alpha=self.scale)
        return scores.softmax(dim=-1).view(*q.shape[:3], q.shape[2]).to(v.dtype) @ v

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        bias = bias.to(q.dtype).expand(len(q) // (len(bias) if bias.ndim == 4 else 1), *bias.shape)
        bias = bias.flatten(0, -4)  # [B*nW, heads, N, N]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)

    def _bias(self, mask: Tensor | None) -> Tensor:
        """What is added to the scores: `[heads, N, N]`, or with a mask `[nW, heads, N, N]`."""
        n = self.window_size**2
        bias = self.relative_position_bias_table.t().index_select(1, self.relative_position_index.flatten())
        bias = bias.view(-1, n, n)
        return bias if mask is None else bias + mask[:, None]

    def extra_repr(self) -> str:
        return f"dim={self.dim}, window_size={self.window_size}, num_heads={self.num_heads}"

    def flops(self, num_windows: int) -> int:
        """Multiply-adds for `num_windows` windows: qkv and proj, then scores and their use (equation 2)."""
        n, c = self.window_size**2, self.dim
        return num_windows * (4 * n * c * c + 2 * n * n * c)


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
        if resolution <= window_size:  # one window holds the whole grid: nothing to shift
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
        """`[B, L, C]` -> `[B, L, C]`; `keep` `[2, B]` holds the stochastic depth of attention and MLP."""
        keep_attention, keep_mlp = (None, None) if keep is None else keep
        x = add_branch(x, self._attend, keep_attention)
        return add_branch(x, self._mix, keep_mlp)

    def _attend(self, x: Tensor) -> Tensor:
        """Tokens to (shifted) windows, attention, and back: one gather each way, where rolling and cutting are two."""
        shape = x.shape
        x = Reorder.apply(self.norm1(x), self.window_order, self.raster_order)
        windows = self.attn(x.view(-1, self.window_size**2, self.dim), self.attn_mask)
        return Reorder.apply(windows.view(shape), self.raster_order, self.window_order)

    def _mix(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm2(x))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, resolution={self.resolution}, shift_size={self.shift_size}"

    def flops(self) -> int:
        """Multiply-adds and the two norms, for one image."""
        tokens = self.resolution**2
        hidden = self.mlp.fc1.out_features
        return self.attn.flops(tokens // self.window_size**2) + 2 * tokens * self.dim * hidden + 2 * tokens * self.dim


class PatchMerging(nn.Module):
    """Joins each 2x2 group of tokens and halves the channels of the result: `[B, L, C]` -> `[B, L/4, 2C]`."""

    def __init__(self, dim: int, resolution: int):
        super().__init__()
        self.dim, self.resolution = dim, resolution
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, side = x.shape[0], self.resolution
        # Microsoft's order of the four: top left, bottom left, top right, bottom right
        x = x.view(b, side // 2, 2, side // 2, 2, self.dim).permute(0, 1, 3, 4, 2, 5)
        x = x.reshape(b, side * side // 4, 4 * self.dim)
        return self.reduction(self.norm(x))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, resolution={self.resolution}"

    def flops(self) -> int:
        """Multiply-adds and the norm, for one image."""
        return self.resolution**2 * self.dim + self.resolution**2 // 4 * 4 * self.dim * 2 * self.dim


class BasicLayer(nn.Module):
    """A stage: blocks that alternate plain and shifted windows, then patch merging (not in the last stage)."""

    def __init__(self, dim: int, resolution: int, depth: int, window_size: int, merge: bool, **block):
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(
                dim, resolution, window_size=window_size, shift_size=window_size // 2 if index % 2 else 0, **block
            )
            for index in range(depth)
        )
        self.downsample = PatchMerging(dim, resolution) if merge else None

    def forward(self, x: Tensor, keep: Tensor | None = None, use_checkpoint: bool = False) -> Tensor:
        """`keep`: `[depth, 2, B]`."""
        for index, block in enumerate(self.blocks):
            kept = None if keep is None else keep[index]
            # The masks go in as a tensor: drawn inside, they would differ between forward and recomputation.
            x = checkpoint(block, x, kept, use_reentrant=False) if use_checkpoint else block(x, kept)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """Photo `[B, 3, S, S]` -> tokens `[B, L, C]`: a convolution whose stride is its kernel, then a norm."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, patch_norm: bool):
        super().__init__()
        self.img_size, self.patches = img_size, img_size // patch_size
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(embed_dim) if patch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.img_size, self.img_size):
            raise ValueError(f"images of {tuple(x.shape[-2:])}, and the model was built for {self.img_size}")
        return self.norm(self.proj(x).flatten(2).transpose(1, 2))

    def flops(self) -> int:
        """Multiply-adds and the norm, for one image."""
        weight = self.proj.weight
        return self.patches**2 * (weight.numel() + (weight.shape[0] if isinstance(self.norm, nn.LayerNorm) else 0))


class SwinTransformer(nn.Module):
    """Swin for image classification: `[B, 3, img_size, img_size]` normalised photos -> logits `[B, num_classes]`.

    Args:
        img_size: side of the input in pixels; every stage's grid must be one window or divide into windows.
        window_size: M of the paper.
        drop_rate: dropout on embeddings, projections and MLPs.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 over the blocks.
        ape: adds a learned absolute position embedding.
        patch_norm: norm after the patch embedding.
        use_checkpoint: recompute each block in backward.
        selective_checkpoint: recompute GELU and attention scores in backward: a third less memory for little time.
    """

    def __init__(
        self,
        *,
        img_size: int = 224,
        patch_size: int = 4,
        in_chans: int = 3,
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
        depths, num_heads = tuple(depths), tuple(num_heads)
        self.num_classes, self.use_checkpoint = num_classes, use_checkpoint
        self.num_features = embed_dim * 2 ** (len(depths) - 1)
        self.drop_path_rates = [drop_path_rate * i / max(1, sum(depths) - 1) for i in range(sum(depths))]  # one a block
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim, patch_norm)
        grid = self.patch_embed.patches
        self.absolute_pos_embed = nn.Parameter(torch.zeros(1, grid * grid, embed_dim)) if ape else None
        self.pos_drop = nn.Dropout(drop_rate)
        self.layers = nn.ModuleList(
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
        if ape:
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)

    def forward_features(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Photos -> normed tokens of the last stage `[B, L, num_features]`."""
        if keep is None and self.training:
            keep = self.draw_drop_path(x.shape[0])
        x = self.patch_embed(x)
        if self.absolute_pos_embed is not None:
            x = x + self.absolute_pos_embed
        x = self.pos_drop(x)
        start = 0
        for layer in self.layers:
            stop = start + len(layer.blocks)
            recompute = self.use_checkpoint and self.training and torch.is_grad_enabled()
            x = layer(x, None if keep is None else keep[start:stop], recompute)
            start = stop
        return self.norm(x)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Logits. `keep`: `draw_drop_path`'s rows for these images; None draws them in training, keeps all in eval."""
        return self.head(self.forward_features(x, keep).mean(dim=1))

    def draw_drop_path(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Stochastic depth for a batch, on the CPU: `[blocks, 2, B]` of 0 or 1/(1-p); None when nothing is dropped."""
        if not any(self.drop_path_rates):
            return None
        survival = 1 - torch.tensor(self.drop_path_rates).view(-1, 1, 1)
        return (torch.rand(len(survival), 2, batch_size, generator=generator) < survival) / survival

    def no_weight_decay(self) -> set[str]:
        """Names (or their last part) of parameters that weight decay would harm."""
        return {"absolute_pos_embed", "relative_position_bias_table"}

    def layer_index(self, name: str) -> int:
        """Depth of a parameter for layer-wise rates: 0 the embedding, then one a block, last the head."""
        blocks = len(self.drop_path_rates)
        parts = name.split(".")
        if parts[0] == "layers":
            before = sum(len(layer.blocks) for layer in self.layers[: int(parts[1])])
            inside = int(parts[3]) if parts[2] == "blocks" else len(self.layers[int(parts[1])].blocks) - 1
            return before + inside + 1
        return 0 if parts[0] in ("patch_embed", "absolute_pos_embed") else blocks + 1

    def flops(self) -> int:
        """Multiply-adds for one image, counted as Microsoft's code does (4.5 G for Swin-T at 224, Table 1)."""
        total = self.patch_embed.flops()
        for layer in self.layers:
            total += sum(block.flops() for block in layer.blocks)
            total += layer.downsample.flops() if layer.downsample is not None else 0
        tokens = self.layers[-1].blocks[-1].resolution ** 2
        return total + tokens * self.num_features + self.num_features * self.num_classes


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def interpolate_bias_table(table: Tensor, rows: int) -> Tensor:
    """Resizes a relative position bias table `[(2M-1)^2, heads]` to `[rows, heads]` for another window, bicubically."""
    old, new = int(table.shape[0] ** 0.5), int(rows**0.5)
    grid = table.T.view(1, -1, old, old)
    return F.interpolate(grid, (new, new), mode="bicubic", align_corners=False).flatten(2)[0].T.contiguous()


def interpolate_positions(embedding: Tensor, tokens: int) -> Tensor:
    """Resizes an absolute position embedding `[1, L, C]` to `[1, tokens, C]`, bicubically."""
    old, new = int(embedding.shape[1] ** 0.5), int(tokens**0.5)
    grid = embedding.transpose(1, 2).unflatten(2, (old, old))
    grid = F.interpolate(grid, (new, new), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2).contiguous()
