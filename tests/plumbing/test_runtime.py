"""Each script runs on the device that is named, or says in one line that there is none."""
import platform

import pytest
import torch

import finetune_answers
import finetune_qa
import train
from baselines import pretrain_encoder
from plumbing.common import UserError
from plumbing.runtime import inference_dtype, keep_memory
from sample import Sample, prepare

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_auto_is_float16_on_a_gpu_without_bf16_and_only_where_nothing_is_trained(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert inference_dtype("auto", GPU) == "float16" and inference_dtype("float32", GPU) == "float32"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert inference_dtype("auto", GPU) == "bfloat16"
    assert inference_dtype("auto", CPU) in ("bfloat16", "float32")


@pytest.mark.parametrize("main, config", [
    (train.main, train.Train), (finetune_qa.main, finetune_qa.FinetuneQA), (finetune_qa.main, finetune_qa.Ask),
    (finetune_qa.main, finetune_qa.ZeroShot), (finetune_answers.main, finetune_answers.FinetuneAnswers),
    (finetune_answers.main, finetune_answers.Answer), (finetune_answers.main, finetune_answers.FinetuneSpan),
    (pretrain_encoder.main, pretrain_encoder.PretrainEncoder), (prepare, Sample)])
def test_a_device_that_is_not_there_is_named_by_every_script(main, config):
    absent = "mps" if torch.cuda.is_available() else "cuda"
    asked = {"Ask": {"question": "Which?"}, "Answer": {"prompt": "Why?"}, "Sample": {"model": ""}}
    with pytest.raises(UserError, match=f"--device {absent}: PyTorch finds no such device"):
        main(config(device=absent, **asked.get(config.__name__, {})))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings of glibc")
def test_kept_memory_is_not_cleared_again():
    resource = pytest.importorskip("resource")

    def page_faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(16 << 20)               # 64 MB, which glibc takes outside its heap: 16,384 pages
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_memory(CPU)
    assert min(page_faults() for _ in range(30)) < 1000           # the first ones may still make the heap larger
