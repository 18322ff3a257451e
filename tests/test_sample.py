"""Sampling is exact, reproducible, and says what is wrong."""
import io
import itertools
import json
import shutil

import pytest
import torch
import transformers
from conftest import NoFloat64, tiny_folder, tiny_model
from launched import launched

import sample
from model import GPT
from plumbing.common import UserError, speaking_to_the_user
from plumbing.runtime import precise_dtype
from sample import Sample, Sampling, choose, generate, main, penalize, stream
from sampling import cache, fast_linear
from sampling.score import log_probabilities
from tokenizer import Tokenizer

WARM = Sampling(temperature=1.0)


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"), world, n_positions=96)


def draw(logits_V, n=20_000, temperature=1.0, top_k=0, top_p=1.0):
    """The shares of each token among n draws."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor(logits_V).expand(n, -1)
    drawn = choose(rows, Sampling(temperature=temperature, top_k=top_k, top_p=top_p), [generator] * n)
    return torch.bincount(drawn, minlength=len(logits_V)) / n


@pytest.mark.parametrize("batch", [1, 8])
def test_greedy_tokens_equal_transformers(folder, batch):
    """With the layer scale on, its eager attention as the reference; 64 tokens for each of `batch` prompts."""
    hf = transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
    prompts = torch.randint(300, (batch, 9), generator=torch.Generator().manual_seed(3))
    theirs = hf.generate(prompts, max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=300)
    ours = [[] for _ in range(batch)]
    for column in stream(tiny_model(n_positions=96), prompts.tolist(), 64):
        for row, token in column:
            ours[row].append(token)
    assert ours == theirs[:, 9:].tolist() and len(ours[0]) == 64


def test_greedy_tokens_are_those_without_a_cache():
    model, ids = tiny_model(), [1, 2, 3]
    for _ in range(25):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    assert generate(model, [1, 2, 3], 25) == [ids[3:]]


def test_a_sample_depends_on_its_seed_not_on_how_many_are_drawn():
    model = tiny_model()
    three = generate(model, [1, 2, 3], 12, WARM, num_samples=3, seed=5)
    assert len({tuple(sample) for sample in three}) == 3
    assert generate(model, [1, 2, 3], 12, WARM, num_samples=1, seed=7)[0] == three[2]
    assert generate(model, [1, 2, 3], 12, WARM, num_samples=3, seed=5) == three


def test_samples_do_not_depend_on_the_prompts_beside_them():
    model, prompts = tiny_model(), [[1, 2, 3], [4, 5, 6]]
    both = [[] for _ in range(6)]
    for column in stream(model, prompts, 12, WARM, num_samples=3, seed=5):
        for row, token in column:
            both[row].append(token)
    alone = [generate(model, prompt, 12, WARM, num_samples=3, seed=5) for prompt in prompts]
    assert both == alone[0] + alone[1]


def test_a_finished_row_is_silent_and_the_others_go_on():
    seen = []
    for column in stream(tiny_model(), [[1, 2, 3]], 6, num_samples=2, stopped=lambda row: row == 0 and len(seen) == 3):
        seen.append([row for row, _ in column])
    assert seen == [[0, 1]] * 3 + [[1]] * 3


def test_seeds_beyond_what_the_generator_reads_are_refused(folder):
    """Torch's CPU generator gives the same numbers for seed 1 and seed 2^32 + 1."""
    one, far = (torch.rand(4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2**32 + 1))
    assert torch.equal(one, far)
    with pytest.raises(UserError, match="--seed is 4294967295; it must be 0 to 4294967294"):
        main(Sample(model=str(folder), prompt="x", seed=2**32 - 1, num_samples=2))


def test_the_repetition_penalty_is_transformers():
    generator = torch.Generator().manual_seed(0)
    logits_BV, ids_BT = torch.randn(2, 301, generator=generator), torch.randint(301, (2, 30), generator=generator)
    seen_BV = torch.zeros(2, 301, dtype=torch.bool).scatter_(1, ids_BT, True)
    theirs = transformers.RepetitionPenaltyLogitsProcessor(1.3)(ids_BT, logits_BV)
    torch.testing.assert_close(penalize(logits_BV, seen_BV, 1.3), theirs)


def test_a_strong_repetition_penalty_repeats_nothing():
    ids = generate(tiny_model(), [1, 2, 3], 25, Sampling(temperature=0.0, repetition_penalty=1e9))[0]
    assert len({1, 2, 3, *ids}) == 28


def test_log_probabilities_are_transformers(folder):
    ids = [300, *Tokenizer.load(folder).encode("Insulin lowers blood glucose.").tolist()]
    hf = transformers.GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
    loss = hf(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    torch.testing.assert_close(-log_probabilities(tiny_model(n_positions=96), ids).mean(), loss, atol=1e-5, rtol=0)


def test_a_very_low_temperature_is_greedy():
    assert draw([2.0, 1.0, 3.0], n=50, temperature=1e-40)[2] == 1


def test_temperature_1_draws_from_the_models_distribution():
    logits = [2.0, 1.0, 0.0, -1.0]
    torch.testing.assert_close(draw(logits), torch.tensor(logits).softmax(0), atol=0.015, rtol=0)


def test_a_lower_temperature_sharpens_it():
    logits = torch.tensor([2.0, 1.0, 0.0])
    torch.testing.assert_close(draw(logits.tolist(), temperature=0.5), (logits / 0.5).softmax(0), atol=0.015, rtol=0)


def test_top_k_keeps_k_even_when_all_are_equal():
    assert (draw([1.0] * 10, top_k=3) > 0).sum() == 3


def test_top_p_keeps_the_fewest_that_reach_p():
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    for top_p, kept in ((0.4, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 4)):
        assert (draw(p.log().tolist(), top_p=top_p) > 0).sum() == kept, top_p


def test_end_of_text_ends_a_sample_and_is_not_printed():
    model = tiny_model()
    greedy = generate(model, [1, 2, 3], 20)[0]
    eos = greedy[5]
    assert generate(model, [1, 2, 3], 20, eos_id=eos)[0] == greedy[:greedy.index(eos)]


def test_every_id_that_config_json_names_ends_a_sample(folder, tmp_path, capsys):
    """As in transformers: eos_token_id may be a list, in generation_config.json or config.json."""
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").unlink()
    prompt = Tokenizer.load(folder).encode("Insulin").tolist()
    greedy = generate(GPT.from_pretrained(folder), prompt, 20)[0]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    for ids, tokens in (([300, greedy[0]], 0), ([greedy[0], 300], 0), (greedy[0], 0), ([300], 20)):
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"eos_token_id": ids}))
        main(Sample(str(tmp_path / "model"), prompt="Insulin", max_new_tokens=20, temperature=0, json=True))
        assert json.loads(capsys.readouterr().out)["tokens"] == tokens


def test_generation_stops_where_the_positions_end():
    assert len(generate(tiny_model(), list(range(20)), 100)[0]) == 12


def test_json_is_one_line_with_the_samples_and_the_speed(folder, capsys):
    main(Sample(str(folder), prompt="Insulin", max_new_tokens=5, num_samples=2, json=True))
    printed = capsys.readouterr().out
    result = json.loads(printed)
    assert printed.count("\n") == 1 and len(result["samples"]) == 2 and result["tokens_per_second"] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "int4"])
def test_every_precision_continues(folder, dtype):
    assert len(main(Sample(model=str(folder), prompt="Insulin", max_new_tokens=5, dtype=dtype))["samples"]) == 1


def test_the_text_appears_while_it_is_made_and_is_the_text_that_is_returned(folder, capsys):
    result = main(Sample(model=str(folder), prompt="Insulin", max_new_tokens=30, num_samples=2))
    printed = capsys.readouterr()
    assert printed.out == "".join(f"Insulin{text}\n\n" for text in result["samples"])[:-1]
    assert printed.err.count("research only") == 1 and "tokens/s" in printed.err


def test_a_stop_string_ends_each_sample_where_it_is_its_own(folder):
    settings = dict(model=str(folder), prompt="Insulin", max_new_tokens=60, num_samples=4)
    whole = main(Sample(**settings))["samples"]
    stop = whole[0][8:11]
    assert main(Sample(**settings, stop=(stop,)))["samples"] == [text.split(stop)[0] for text in whole]


def test_where_the_positions_end_it_says_so(folder, capsys):
    result = main(Sample(model=str(folder), prompt="Insulin", max_new_tokens=500, temperature=0))
    assert "where the model's 96 positions end" in capsys.readouterr().err
    assert result["tokens"] == 96 - len(Tokenizer.load(folder).encode("Insulin"))


def test_a_file_of_prompts_gives_a_json_line_each_in_its_order(folder, tmp_path, capsys):
    prompts = ["Insulin", "The ECG was", "Aspirin", "Vitamin C", "Insulin"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    settings = dict(model=str(folder), max_new_tokens=12, num_samples=2, dtype="float32")
    results = main(Sample(file=str(tmp_path / "prompts.txt"), **settings))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == results and [line["prompt"] for line in lines] == prompts
    for line in lines:
        assert line["samples"] == main(Sample(prompt=line["prompt"], **settings))["samples"]


def test_prompts_come_from_stdin(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Insulin\nAspirin\n"))
    assert len(main(Sample(model=str(folder), file="-", max_new_tokens=3))) == 2


def test_a_score_names_every_token(folder, capsys):
    result = main(Sample(model=str(folder), prompt="Insulin lowers blood glucose.", score=True))
    assert "".join(token for token, _ in result["log_probabilities"]) == "Insulin lowers blood glucose."
    assert result["log_probability"] == pytest.approx(sum(value for _, value in result["log_probabilities"]))
    assert f"{result['log_probability']:9.4f}  nats in {result['tokens']} tokens" in capsys.readouterr().out


def test_a_conversation_goes_on_after_a_mistake_and_an_interruption(folder, monkeypatch, capsys):
    typed, breaks, real = iter(["", "Insulin", "Aspirin"]), iter([True, False]), sample.stream

    def ask(prompt):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    def interrupted(*args, **settings):
        yield from itertools.islice(real(*args, **settings), 3)
        if next(breaks):
            raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr(sample, "stream", interrupted)
    assert main(Sample(model=str(folder), interactive=True, max_new_tokens=5)) is None
    printed = capsys.readouterr()
    assert "error: the prompt is empty" in printed.err and printed.err.count("(interrupted)") == 1
    assert "Insulin" in printed.out and "Aspirin" in printed.out


def test_ctrl_c_in_the_middle_is_one_line(folder, monkeypatch, capsys):
    monkeypatch.setattr(sample, "stream", interrupt_after_two)
    with pytest.raises(SystemExit, match="130"), speaking_to_the_user():
        main(Sample(model=str(folder), prompt="Insulin"))
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == "interrupted; the text above is not finished"
    assert printed.out.startswith("Insulin") and printed.out.endswith("\n")


def interrupt_after_two(*args, **settings):
    yield [(0, 65)]
    yield [(0, 66)]
    raise KeyboardInterrupt


@pytest.mark.parametrize("settings", [dict(), dict(score=True), dict(score=True, json=True)])
def test_weights_that_are_no_numbers_end_in_an_error(folder, tmp_path, capsys, settings):
    model = GPT.from_pretrained(folder)
    model.h[1].mlp.c_fc.weight.data[0, 0] = torch.nan
    model.save_pretrained(tmp_path)
    Tokenizer.load(folder).save(tmp_path)
    with pytest.raises(UserError, match="NaN or infinite: its weights are damaged"):
        main(Sample(model=str(tmp_path), prompt="Insulin", **settings))
    assert "NaN" not in capsys.readouterr().out


def test_numbers_that_become_nan_at_a_later_position_end_the_text_there(folder, tmp_path, capsys):
    model = GPT.from_pretrained(folder)
    model.wpe.weight.data[12] = torch.nan
    model.save_pretrained(tmp_path)
    Tokenizer.load(folder).save(tmp_path)
    with pytest.raises(UserError, match="NaN or infinite"):
        main(Sample(model=str(tmp_path), prompt="Insulin"))
    printed = capsys.readouterr().out
    assert printed.startswith("Insulin") and printed.endswith("\n") and "!!" not in printed


def test_float16_gives_the_greedy_text_of_float32(folder):
    """In the arithmetic of a GPU: every product in float16. The layer scale keeps the attention scores in range."""
    model = tiny_model(n_positions=96)
    half = tiny_model(n_positions=96).half()
    assert generate(half, [1, 2, 3], 60) == generate(model, [1, 2, 3], 60)


@pytest.mark.parametrize("settings", [dict(), dict(top_k=5), dict(top_p=0.9, repetition_penalty=1.2)])
def test_a_device_without_float64_can_draw(monkeypatch, settings):
    monkeypatch.setattr(sample, "precise_dtype", lambda device: torch.float32)
    sampling, model = Sampling(temperature=1.0, **settings), tiny_model()
    with NoFloat64():
        drawn = generate(model, [1, 2, 3], 12, sampling, num_samples=3, seed=5)
    monkeypatch.undo()
    assert drawn == generate(model, [1, 2, 3], 12, sampling, num_samples=3, seed=5)
    assert precise_dtype(torch.device("mps")) == torch.float32 and precise_dtype(torch.device("cpu")) == torch.float64


def test_texts_that_do_not_fit_into_memory_are_refused_before_they_are_made(folder, monkeypatch):
    monkeypatch.setattr(cache, "free_memory", lambda device: 2**20)
    with pytest.raises(UserError, match="1,000 texts of 9[0-9] tokens need .* GB of memory; 0.0 GB are free"):
        main(Sample(model=str(folder), prompt="Insulin", num_samples=1000))
    monkeypatch.setattr(cache, "free_memory", lambda device: None)          # the system does not say
    assert len(main(Sample(model=str(folder), prompt="Insulin", num_samples=2, max_new_tokens=2))["samples"]) == 2


def test_without_a_prompt_a_terminal_gets_the_interactive_mode(folder, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal(""))
    assert main(Sample(model=str(folder))) is None
    monkeypatch.setattr("sys.stdin", io.StringIO("Insulin"))
    with pytest.raises(UserError, match="give exactly one of"):
        main(Sample(model=str(folder)))


def test_the_share_of_bandwidth_is_bytes_over_what_memory_gives(monkeypatch):
    """9 tokens after a prompt of 4, in 2 rows: 8 steps in 2 seconds, of 1000 bytes of weights and the cache each."""
    monkeypatch.setattr(fast_linear, "MIN_BYTES_TO_JUDGE_BANDWIDTH", 0)
    monkeypatch.setattr(fast_linear, "weight_bytes", lambda model: 1000)
    monkeypatch.setattr(fast_linear, "read_bandwidth", lambda device: 1e6)
    model = tiny_model()
    cache_bytes = sum(2 * 3 * 48 * 4 * 2 * length for length in range(4, 12))
    times = [0.0, 1.0, *(1 + 0.25 * n for n in range(1, 9))]
    assert fast_linear.share_of_bandwidth(model, 4, 2, times) == pytest.approx((8 * 1000 + cache_bytes) / 2 / 1e6)


@pytest.mark.parametrize("changes, words", [
    (dict(prompt=""), "the prompt is empty"), (dict(temperature=-1), "--temperature is -1"),
    (dict(top_p=0.0), "--top-p is 0.0"), (dict(top_k=-3), "--top-k is -3"),
    (dict(model="nowhere/at/all"), "no such folder"), (dict(max_new_tokens=0), "--max-new-tokens is 0"),
    (dict(num_samples=0), "--num-samples is 0"),
    (dict(repetition_penalty=0.0), "--repetition-penalty is 0.0"), (dict(stop=("",)), "a stop string is empty"),
    (dict(stop=("<|im_end|>",)), "unknown stop string"), (dict(interactive=True), "give exactly one of --prompt"),
    (dict(prompt="a\ud800b"), r"the prompt 'a\\ud800b' is not Unicode text"),
    (dict(stop=("\udce9",)), "--stop .* is not Unicode text"), (dict(num_samples=10**9), "--num-samples is 1000000000"),
    (dict(temperature=float("nan")), "--temperature is nan"), (dict(layout="nowhere"), "--layout nowhere"),
    (dict(prompt=None, file="nowhere.txt"), "nowhere.txt: cannot be read as text"),
    (dict(prompt="word " * 200), "positions allow at most 95; shorten it")])
def test_bad_input_is_named(folder, changes, words):
    with pytest.raises(UserError, match=words):
        main(Sample(**dict(model=str(folder), prompt="Insulin") | changes))


def test_a_tokenizer_of_another_model_is_noticed(folder, tmp_path):
    tiny_model(vocab_size=200).save_pretrained(tmp_path)
    Tokenizer.load(folder).save(tmp_path)
    with pytest.raises(UserError, match="they do not belong together"):
        main(Sample(model=str(tmp_path), prompt="Insulin"))


def test_an_error_is_one_line_and_code_2(tmp_path):
    finished = launched("sample.py", "--model", tmp_path, "--prompt", "x")
    assert finished.returncode == 2 and finished.stderr.startswith("error: ") and finished.stderr.count("\n") == 1
