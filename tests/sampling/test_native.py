"""The C files are compiled by what the machine has, and what it lacks is said."""
import pytest
import torch

from sampling import native
from sampling.native import in_lines, library, matvec, read_all


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A function that makes cc refuse a flag."""
    def refuse(flag):
        script = tmp_path / "cc"
        check = f'case " $* " in *" {flag} "*) echo "no {flag}" >&2; exit 1;; esac'
        script.write_text(f'#!/bin/sh\n{check}\nexec cc "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv("CC", str(script))
        library.cache_clear()
        return library()
    yield refuse
    library.cache_clear()


@pytest.mark.skipif(library()[0] is None, reason=library()[1])
def test_without_openmp_the_loops_run_in_one_thread_to_the_same_bits(compiler, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x_BI, W_OI = torch.randn(5, 300, generator=generator), torch.randn(30, 300, generator=generator)
    expected = matvec(x_BI, in_lines(W_OI))
    monkeypatch.setattr(native, "FLAGS", ("-O1", *native.FLAGS[1:]))               # compiles faster
    functions, why = compiler("-fopenmp")
    assert functions and "has no OpenMP" in why
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(matvec(x_BI, in_lines(W_OI)), expected)
    read_all(torch.ones(2**12))


def test_the_compilers_last_line_is_in_the_reason(compiler):
    assert compiler("-O3") == (None, "sampling/*.c could not be compiled (no -O3)")
