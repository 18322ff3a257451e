"""A block and the loss out of the kernels: the same functions that model.py computes with torch's operators.

A block's forward pass is five launches and four matrix products. It keeps, in bytes per token in bf16, D = n_embd:

    norm_linear       the residual stream before each LayerNorm             2 x 2 D bytes
    flash_attention   the packed q, k, v and the output                     8 D
    gelu_linear       the first layer's product, before bias and GELU       8 D

That is 20 D bytes. torch's operators also keep the outputs of both LayerNorms, 4 D, and of GELU, 8 D: 8.1 GB more for
BioMedLM's 32 blocks and 8,192 tokens. (Both keep 2 D of dropout masks and, under autocast, bf16 copies of the weights.)
The head's logits never exist in fp32, and in bf16 only some rows at a time.

The residual stream has the dtype of the products: bf16 under autocast, where torch's operators keep it in fp32.
"""
import torch.nn.functional as F

from kernels.cross_entropy import linear_cross_entropy
from kernels.flash_attention import flash_attention
from kernels.gelu import gelu_linear
from kernels.layer_norm import layer_norm, norm_linear


def block(layer, x_BTD, doc_start_BT=None, attention=flash_attention):
    """model.Block's x + attention(LayerNorm(x)), then x + MLP(LayerNorm(x)). bench/ measures other functions as
    `attention`; rows that are separated into documents stay with flash_attention."""
    attn, mlp, ln_1, ln_2 = layer.attn, layer.mlp, layer.ln_1, layer.ln_2

    qkv_BTC = norm_linear(x_BTD, ln_1.weight, ln_1.bias, attn.c_attn.weight, attn.c_attn.bias, eps=ln_1.eps)
    settings = qkv_BTC, attn.n_head, attn.scale_on_device, attn.dropout if layer.training else 0.0
    y_BTD = attention(*settings) if doc_start_BT is None else flash_attention(*settings, doc_start_BT=doc_start_BT)
    y_BTD = layer.drop(F.linear(y_BTD, attn.c_proj.weight.to(y_BTD.dtype), attn.c_proj.bias.to(y_BTD.dtype)))

    x_BTD, h_BTF = norm_linear(y_BTD, ln_2.weight, ln_2.bias, mlp.c_fc.weight, None, residual=x_BTD, eps=ln_2.eps)
    return x_BTD + layer.drop(gelu_linear(h_BTF, mlp.c_fc.bias, mlp.c_proj.weight, mlp.c_proj.bias))


def final_norm(ln_f, x_BTD):
    """x's dtype, where F.layer_norm under CUDA's autocast returns fp32, and the head's product would not be bf16's."""
    return layer_norm(x_BTD, ln_f.weight, ln_f.bias, ln_f.eps)


def loss(x_BTD, head_VD, targets_BT):
    """Mean cross-entropy in nats of the tied head's logits, over the targets that are not negative."""
    return linear_cross_entropy(x_BTD, head_VD, targets_BT)
