"""Are the kernels right on this GPU? The first three stages of `make gpu`.

    python bench/gpu_checks.py facts        # the machine: versions, card, assembler, what it can reach
    python bench/gpu_checks.py correct      # every operator that training and decoding use, against fp64
    python bench/gpu_checks.py model        # two layers of the full width: loss and every gradient

"correct" runs each operator three times over fresh memory full of NaN and wants the same bits: an error that moves is a
race. It also compares the largest element of the error with the largest of the reference, since a few wrong elements
hide in a norm. Its checks are shared among processes, which compile their kernels at the same time.
Not here: speed (kernels.py, gpu_speed.py). On a CPU the same kernels are tested interpreted (tests/kernels/).
"""
import importlib.util
import math
import os
import platform
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))     # the repository's modules, before those of bench/

import torch
import torch.nn.functional as F

from bench.gpu_records import attempt, emit, kernels_in_use
from data import document_starts
from model import GPT, GPTConfig
from plumbing.common import ROOT, UserError, git_commit, speaking_to_the_user
from plumbing.runtime import autocast, pick_device

PROCESSES = 8                   # that share the checks of "correct"
CLOSE = 1e-2                    # |x - fp64| / |fp64| that bf16's rounding may cost
CLOSE_ELEMENT = 3e-2            # largest |x - fp64| / largest |fp64|
RIVALS = ("transformers", "flash_attn_interface", "flash_attn", "liger_kernel", "transformer_engine")


# ---- facts -----------------------------------------------------------------------------------------------------------

def facts():
    """The machine, and what is installed on it."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    for name in ("triton", "transformers", "numpy"):
        with attempt(fact=name):
            versions[name] = importlib.import_module(name).__version__
    card = torch.cuda.get_device_properties(0)
    emit(fact="machine", card=card.name, capability=f"sm_{card.major}{card.minor}", driver=driver(),
         memory_gib=card.total_memory / 2**30, cores=os.cpu_count(), commit=git_commit(), **versions)
    emit(fact="importable", modules=[name for name in RIVALS if importlib.util.find_spec(name)])
    with attempt(fact="torch's attention"):
        emit(fact="torch's attention", sdpa=attention_that_torch_chooses(torch.device("cuda")))
    with attempt(fact="ceilings"):
        from bench.measure import ceilings
        copy, product = ceilings()
        emit(fact="ceilings", copy_tb_per_s=copy / 1e12, product_tflops=product / 1e12)


def attention_that_torch_chooses(device):
    """The backend of F.scaled_dot_product_attention for BioMedLM's training, by torch's own private function."""
    q_BHTK = torch.empty(8, 20, 1024, 128, dtype=torch.bfloat16, device=device, requires_grad=True)
    choice = torch._fused_sdp_choice(q_BHTK, q_BHTK, q_BHTK, dropout_p=0.1, is_causal=True)
    return torch.nn.attention.SDPBackend(choice).name


def driver():
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError as error:
        return f"unknown ({error})"


# ---- correct: operator by operator -----------------------------------------------------------------------------------

def correct(share=None):
    """Run all checks in PROCESSES processes, or in this one those of a share."""
    if share is None:
        command = [sys.executable, __file__, "correct"]
        processes = [subprocess.Popen([*command, str(i)], cwd=ROOT) for i in range(PROCESSES)]
        return max(process.wait() != 0 for process in processes)
    from bench.measure import poisoned
    poisoned()
    torch.manual_seed(4)
    for name, make in list(checks(pick_device()).items())[int(share)::PROCESSES]:
        with attempt(check=name):
            verify(name, *make())
        torch.cuda.empty_cache()
    return 0


def checks(device, real=True):
    """{name: function that makes (inputs, ours, reference)}. `real`: the sizes of training; otherwise small ones."""
    from kernels.cross_entropy import linear_cross_entropy
    from kernels.gelu import bias_gelu, gelu_linear
    from kernels.layer_norm import add_layer_norm, layer_norm, norm_linear
    N, D, M, V = (8192, 2560, 10240, 28896) if real else (20, 64, 96, 200)
    bf16 = partial(random_bf16, device)
    fp32 = partial(random_weights, device)
    targets_N = torch.randint(-1, V, (N,), device=device)

    def norm(x, weight, bias):
        return F.layer_norm(x, x.shape[-1:], weight, bias)

    def gelu(h, bias):
        return F.gelu(h + bias, approximate="tanh")

    def norm_linear_reference(x, norm_weight, norm_bias, weight, bias, residual):
        return x + residual, norm(x + residual, norm_weight, norm_bias) @ weight.T + bias

    found = {
        "layer_norm": lambda: ([bf16(N, D), fp32(D), fp32(D)], layer_norm, norm),
        "add_layer_norm": lambda: ([bf16(N, D), bf16(N, D), fp32(D), fp32(D)], add_layer_norm,
                                   lambda x, residual, *weights: (x + residual, norm(x + residual, *weights))),
        "norm_linear": lambda: ([bf16(N, D), fp32(D), fp32(D), fp32(3 * D, D), fp32(3 * D), bf16(N, D)], norm_linear,
                                norm_linear_reference),
        "bias_gelu": lambda: ([bf16(N, M), fp32(M)], bias_gelu, gelu),
        "gelu_linear": lambda: ([bf16(N, M), fp32(M), fp32(D, M), fp32(D)], gelu_linear,
                                lambda h, b, w, bias: gelu(h, b) @ w.T + bias),
        "linear_cross_entropy": lambda: ([bf16(N, D), fp32(V, D)], lambda x, w: linear_cross_entropy(x, w, targets_N),
                                         lambda x, w: F.cross_entropy(x @ w.T, targets_N, ignore_index=-1)),
    }
    for B in (1, 8):
        sizes = (20, 1000, 128) if real else (2, 40, 64)
        found[f"append_and_decode, batch {B}"] = partial(appending, device, B, *sizes)
    if real:
        shapes = [(2, T, 2, K, docs, p) for K in (128, 64) for T in (1024, 1000) for docs in (False, True)
                  for p in (0.0, 0.1)]
        shapes += [(8, 1024, 20, 128, False, 0.0), (8, 1024, 20, 128, False, 0.1), (1, 4096, 20, 128, False, 0.0)]
    else:
        shapes = [(1, 40, 1, 64, False, 0.0), (1, 40, 2, 64, True, 0.1)]
    for B, T, H, K, docs, p in shapes:
        name = f"attention {B} x {T} x {H} x {K}" + ", documents" * docs + ", dropout" * (p > 0)
        found[name] = partial(attention, device, B, T, H, K, docs, p)
    return found


def random_bf16(device, *shape):
    return torch.randn(*shape, device=device).bfloat16().requires_grad_()


def random_weights(device, *shape):
    """fp32, as training holds its weights, with values that bf16 can hold: the cast costs no error."""
    scale = shape[-1] ** -0.5 if len(shape) > 1 else 1.0
    return (scale * torch.randn(*shape, device=device)).bfloat16().float().requires_grad_()


def attention(device, B, T, H, K, docs, dropout_p):
    """Inputs, ours and reference of packed causal attention."""
    from kernels.flash_attention import attention_reference, dropout_in_256, flash_attention
    qkv_BT3C, scale, seed_1, keep_BHTS, doc_start_BT = random_bf16(device, B, T, 3 * H * K), K**-0.5, None, 1.0, None
    if docs:
        doc_start_BT = document_starts(torch.randint(0, 40, (B, T), device=device), 0)
    if dropout_p:
        drop = dropout_in_256(dropout_p)
        seed_1 = torch.randint(2**62, (1,), device=device)
        keep_BHTS = (philox_bytes(seed_1.item(), B * H, T, device) >= drop).view(B, H, T, T) * (256 / (256 - drop))
    return ([qkv_BT3C], lambda qkv: flash_attention(qkv, H, scale, dropout_p, seed=seed_1, doc_start_BT=doc_start_BT),
            lambda qkv: attention_reference(qkv, H, scale, keep_BHTS, doc_start_BT)[0])


def appending(device, B, H, S, K):
    """Inputs, ours and reference of a decoding step, which writes the new key and value to the caches."""
    from kernels.flash_decode import append_and_decode
    qkv_BC, k_BHSK, v_BHSK = (random_bf16(device, *shape).detach()
                              for shape in ((B, 3 * H * K), (B, H, S, K), (B, H, S, K)))
    length_B = torch.full((B,), S * 9 // 10, dtype=torch.int32, device=device)

    def ours(qkv_BC, *caches):
        caches = [cache.clone() for cache in caches]
        return append_and_decode(qkv_BC, *caches, length_B, K**-0.5), *caches

    def reference(qkv_BC, *caches):
        q_BHK, *new = qkv_BC.view(B, 3, H, K).unbind(1)
        caches = [cache.clone() for cache in caches]
        for cache, x_BHK in zip(caches, new, strict=True):
            cache[:, :, length_B[0] - 1] = x_BHK
        k_BHSK, v_BHSK = (cache[:, :, :length_B[0]] for cache in caches)
        return F.scaled_dot_product_attention(q_BHK[:, :, None], k_BHSK, v_BHSK, scale=K**-0.5).flatten(1), *caches

    return [qkv_BC, k_BHSK, v_BHSK], ours, reference


def philox_bytes(seed, heads, T, device):
    """[heads, T, T] random bytes by Philox4x32-7 (Salmon et al. 2011), counter (t, s // 16, head, 0), bytes in
    little-endian order. Products wrap at 64 bits; their halves are the same for signed and unsigned numbers."""
    head, t, group = torch.meshgrid(*(torch.arange(n, device=device) for n in (heads, T, -(-T // 16))), indexing="ij")
    c0, c1, c2, c3 = t, group, head, torch.zeros_like(t)
    key0, key1, low = seed & 0xFFFFFFFF, seed >> 32, 0xFFFFFFFF
    for _ in range(7):
        a = 0xD2511F53 * c0
        b = 0xCD9E8D57 * c2
        c0, c1, c2, c3 = ((b >> 32) & low) ^ c1 ^ key0, b & low, ((a >> 32) & low) ^ c3 ^ key1, a & low
        key0, key1 = (key0 + 0x9E3779B9) & low, (key1 + 0xBB67AE85) & low
    words = torch.stack([c0, c1, c2, c3], -1)
    shifts = torch.arange(0, 32, 8, device=device)
    return ((words[..., None] >> shifts) & 255).to(torch.uint8).reshape(heads, T, -1)[:, :, :T]


def verify(name, inputs, ours, reference):
    """Emit how far ours and its gradients are from the reference in fp64, and whether three runs give the same bits."""
    runs = [outputs_and_gradients(ours, inputs) for _ in range(3)]
    same_bits = all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))
    doubles = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    expected = outputs_and_gradients(reference, doubles)
    errors = [error_of(x, ref) for x, ref in zip(runs[0], expected, strict=True)]
    error, element = (max(column) for column in zip(*errors, strict=True))
    emit(check=name, error=error, largest_element=element, same_bits=same_bits,
         right=same_bits and error < CLOSE and element < CLOSE_ELEMENT)


def outputs_and_gradients(function, inputs):
    """The outputs and the gradients of the inputs, for output gradients that depend on the shapes alone."""
    outputs = function(*inputs)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    learned = [x for x in inputs if x.requires_grad]
    if not learned:
        return outputs
    generator = torch.Generator(outputs[0].device).manual_seed(1)
    douts = [torch.randn(out.shape, device=out.device, generator=generator).bfloat16().to(out.dtype) for out in outputs]
    return [out.detach() for out in outputs] + list(torch.autograd.grad(outputs, learned, douts))


def error_of(x, reference):
    """(relative error of the norm, largest error over the largest element); infinite for NaN."""
    difference = x.double() - reference
    errors = [(difference.norm() / reference.norm()).item(), (difference.abs().max() / reference.abs().max()).item()]
    return [math.inf if math.isnan(error) else error for error in errors]


# ---- model: two layers together --------------------------------------------------------------------------------------

def model(device=None, shape=None, batch=4, variants=None):
    """Decoding by a CUDA graph; then loss and gradients of each variant, beside those of torch's operators in fp32."""
    device = device or pick_device()
    shape = replace(shape or GPTConfig(n_layer=2), embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    generator = torch.Generator(device).manual_seed(0)
    ids_BT, targets_BT = torch.randint(0, shape.vocab_size, (2, batch, shape.n_positions), device=device,
                                       generator=generator)
    truth = step(new_model(shape, device), ids_BT, targets_BT, "float32")
    if device.type == "cuda":
        for rows in (1, 8):
            with attempt(parity=f"CUDA graph, batch {rows}"):
                decode_in_a_graph(new_model(shape, device).eval(), rows)
    for kernels, compiled, recompute in variants or [("torch", False, False), ("triton", False, False),
                                                     ("triton", True, False), ("triton", False, True),
                                                     ("triton", True, True), ("sdpa", True, False),
                                                     ("torch", True, False)]:
        name = kernels + ", compiled" * compiled + ", recomputed" * recompute
        with attempt(parity=name):
            gpt = new_model(shape, device, kernels, compiled, recompute)
            compare(name, step(gpt, ids_BT, targets_BT, "bfloat16"), truth)
        if kernels == "triton":
            with attempt(parity=name + ", dropout"):
                dropping = replace(shape, embd_pdrop=0.1, attn_pdrop=0.1, resid_pdrop=0.1)
                repeat(name, new_model(dropping, device, kernels, compiled, recompute), ids_BT, targets_BT)


def new_model(shape, device, kernels="torch", compiled=False, recompute=False):
    """A GPT with the weights of seed 0, drawn on the device."""
    with torch.device("meta"):
        gpt = GPT(shape)
    gpt.to_empty(device=device)
    parameters = dict(gpt.named_parameters())
    with torch.no_grad():
        for name, value in gpt.initial_weights(0, device):
            parameters[name].copy_(value)
    attach_kernels(gpt, kernels, device)
    for block in gpt.h:
        block.recompute = recompute
        if compiled:
            block.compile()
    return gpt.train()


def sdpa(qkv_BT3C, n_head, scale, dropout_p=0.0):
    """flash_attention's function by the kernel that torch chooses: on Hopper cuDNN's, if torch's build has a new enough
    one, else FlashAttention-2's. No documents."""
    q_BHTK, k_BHTK, v_BHTK = qkv_BT3C.unflatten(2, (3, n_head, -1)).permute(2, 0, 3, 1, 4)
    K = q_BHTK.shape[3]
    q_BHTK = q_BHTK * (scale * K**0.5)                            # F's scale is a constant of the compiled block
    y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True, dropout_p=dropout_p, scale=K**-0.5)
    return y_BHTK.transpose(1, 2).flatten(2)


def kernels_with_sdpa():
    """The functions of kernels/transformer.py, for GPT.kernels and Block.kernels, with sdpa in the block."""
    from kernels.transformer import block, final_norm, loss
    return SimpleNamespace(block=partial(block, attention=sdpa), final_norm=final_norm, loss=loss)


def attach_kernels(gpt, kernels, device):
    """gpt.use_kernels, and what it says. "triton" is refused where the assembler is too old to be trusted; then "auto",
    which checks what it compiles, decides. UserError if that leaves torch's operators. "sdpa" is Triton's kernels but
    for attention, the one for which the assembler matters."""
    if kernels == "sdpa":
        from kernels import require_triton
        said = require_triton(device, gpt.cfg.head_width)
        for module in (gpt, *gpt.h):
            module.kernels = kernels_with_sdpa()
        return f"{said}; attention by torch's scaled_dot_product_attention"
    try:
        return gpt.use_kernels(kernels, device)
    except UserError:
        said = gpt.use_kernels("auto", device)
        if gpt.kernels is None:
            raise
        return said


def step(gpt, ids_BT, targets_BT, dtype, seed=0):
    """(loss, {parameter: gradient}) of a training step's forward and backward pass."""
    torch.manual_seed(seed)
    gpt.zero_grad()
    with autocast(ids_BT.device, dtype):
        loss = gpt(ids_BT, targets_BT)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in gpt.named_parameters()}


def compare(name, found, truth):
    """Emit the distance from the fp32 step. bf16 costs a few 1e-3; twice CLOSE is a fault."""
    errors = {parameter: error_of(gradient, truth[1][parameter].double())[0]
              for parameter, gradient in found[1].items()}
    worst = max(errors, key=errors.get)
    loss_error = abs(found[0] - truth[0])
    emit(parity=name, loss=found[0], loss_differs=loss_error, gradient_error=errors[worst], worst=worst,
         right=loss_error < CLOSE and errors[worst] < 2 * CLOSE)


def repeat(name, gpt, ids_BT, targets_BT):
    """With dropout: the same seed must give the same bits, another seed another loss."""
    (loss, gradients), (again, gradients_again) = (step(gpt, ids_BT, targets_BT, "bfloat16") for _ in range(2))
    other, _ = step(gpt, ids_BT, targets_BT, "bfloat16", seed=1)
    same = loss == again and all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)
    emit(parity=name + ", dropout", loss=loss, same_bits=same, right=same and other != loss)


@torch.inference_mode()
def decode_in_a_graph(gpt, batch, tokens=5, prompt=40):
    """Five tokens by a recorded graph, beside the same model without one."""
    from sample import KVCache, next_logits, one_token
    gpt = gpt.bfloat16()
    prompt_BT = torch.randint(0, gpt.cfg.vocab_size, (batch, prompt), device=gpt.ln_f.weight.device)
    caches = [KVCache(gpt.cfg, batch, prompt + tokens + 1, gpt.ln_f.weight) for _ in range(2)]
    for cache in caches:
        next_logits(gpt, cache, prompt_BT)
    graph, errors = one_token(gpt, caches[0], True), []
    for _ in range(tokens):
        ids_B1 = torch.randint(0, gpt.cfg.vocab_size, (batch, 1), device=prompt_BT.device)
        errors.append(error_of(graph(ids_B1), next_logits(gpt, caches[1], ids_B1).double())[0])
    emit(parity=f"CUDA graph, batch {batch}", error=max(errors), right=max(errors) < CLOSE)


if __name__ == "__main__":
    with speaking_to_the_user():
        print(kernels_in_use(), flush=True)
        stages = {"facts": facts, "correct": correct, "model": model}
        sys.exit(stages[sys.argv[1]](*sys.argv[2:]))
