"""Randomness is a pure function of (seed, stream, step, position), the same for both bodies."""

from __future__ import annotations

import math
import os
import signal
import time

import numpy as np
import pytest
import torch
from numba import njit
from scipy import stats

from aimc.errors import AimcError
from aimc.random import (
    STREAMS,
    Key,
    bernoulli,
    cpu,
    log_uniform,
    normal,
    permutation,
    reference,
    uniform,
    words,
)
from aimc.random._pool import run_chunks

BODIES = ("reference", "cpu")
KEY = Key(0x0123456789ABCDEF, stream=4, step=77)

KNOWN = [  # counter, key, words: the test vectors of the authors' Random123 library
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]

_normal = cpu._normal


@njit
def _normals_of(words, out):
    for i in range(words.size):
        out[i] = _normal(words[i])


@pytest.fixture
def threads():
    """Sets the number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("body", [reference, cpu], ids=BODIES)
@pytest.mark.parametrize("counter, key, expected", KNOWN)
def test_known_answers(body, counter, key, expected):
    assert " ".join(f"{int(word):08x}" for word in body.block(counter, key)) == expected


@pytest.mark.parametrize("backend", BODIES)
def test_layout(backend):
    key = Key(0x299F31D0_A4093822, stream=0x03707344, step=0x13198A2E)
    position = 0x05A308D3_243F6A88 * 4
    got = words(key, 8, position, backend=backend).tolist()
    for b in range(2):
        counter = (0x243F6A88 + b, 0x05A308D3, 0x13198A2E, 0x03707344)
        assert tuple(got[4 * b : 4 * b + 4]) == reference.block(counter, (0xA4093822, 0x299F31D0))


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 2**34 - 7, 2**34 + 1, 2**36 + 3, 2**61 + 2, 2**63 - 1101])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 63, 1101])
def test_bodies_agree(offset, n):
    assert torch.equal(words(KEY, n, offset, backend="cpu"), words(KEY, n, offset, backend="reference"))
    a, b = (uniform(KEY, n, offset, backend=body) for body in BODIES)
    assert torch.equal(a, b)
    a, b = (bernoulli(KEY, n, 0.3, offset, backend=body) for body in BODIES)
    assert torch.equal(a, b)
    a, b = (normal(KEY, n, offset, backend=body) for body in BODIES)
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("draw", [uniform, normal], ids=["uniform", "normal"])
@pytest.mark.parametrize("backend", BODIES)
def test_any_division_gives_the_same(draw, backend):
    whole = draw(KEY, 5000, 2**34 - 2000, backend=backend)
    for size in (1, 7, 64, 1023, 1024, 1026, 4999):
        starts = range(0, 5000, size) if size > 1 else range(40)
        for a in starts:
            part = draw(KEY, min(size, 5000 - a), 2**34 - 2000 + a, backend=backend)
            assert torch.equal(part, whole[a : a + size])


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_any_number_of_threads_gives_the_same(threads, count):
    n = 3_000_001
    threads(count)
    z, u, w, b = normal(KEY, n, 3), uniform(KEY, n, 3), words(KEY, n, 3), bernoulli(KEY, n, 0.3, 3)
    for a in range(0, n, 250_007):
        m = min(1000, n - a)
        assert torch.equal(z[a : a + m], normal(KEY, m, 3 + a))
        assert torch.equal(u[a : a + m], uniform(KEY, m, 3 + a))
        assert torch.equal(w[a : a + m], words(KEY, m, 3 + a, backend="reference"))
        assert torch.equal(b[a : a + m], bernoulli(KEY, m, 0.3, 3 + a))
    threads(1)
    assert torch.equal(z, normal(KEY, n, 3)) and torch.equal(w, words(KEY, n, 3))


def test_words_are_uniform_and_all_bits_are_fair():
    w = words(KEY, 1 << 20)
    assert int(w.min()) >= 0 and int(w.max()) < 2**32
    for bit in range(32):
        ones = int(((w >> bit) & 1).sum())
        assert abs(ones - 2**19) < 5 * math.sqrt(2**20) / 2
    assert stats.chisquare(np.bincount((w >> 24).numpy(), minlength=256)).pvalue > 1e-4


# ---------------------------------------------------------------- kernels for other kernels


def test_fills_from_inside_another_kernel():
    fill_words, fill_normals, fill_uniforms = cpu.fill_words, cpu.fill_normals, cpu.fill_uniforms

    @njit(nogil=True)
    def kernel(w, z, u, k0, k1, step, stream, start):
        fill_words(w, k0, k1, step, stream, start)
        fill_normals(z, z.size - 5, k0, k1, step, stream, start)
        fill_uniforms(u, u.size - 5, k0, k1, step, stream, start)

    for n in (6, 300, 2055):
        w, z, u = np.zeros(n, np.uint32), np.zeros(n, np.float32), np.zeros(n, np.float32)
        kernel(w, z, u, *cpu.key_words(KEY), 2**40 + 1)
        assert w.tolist() == words(KEY, n, 2**40 + 1).tolist()
        assert z[:-5].tolist() == normal(KEY, n - 5, 2**40 + 1).tolist() and not z[-5:].any()
        assert u[:-5].tolist() == uniform(KEY, n - 5, 2**40 + 1).tolist() and not u[-5:].any()


# ---------------------------------------------------------------- uniform


@pytest.mark.parametrize("backend", BODIES)
def test_uniform(backend):
    u = uniform(KEY, (1000, 200), backend=backend)
    assert u.shape == (1000, 200) and u.dtype == torch.float32
    assert stats.kstest(u.flatten().double().numpy(), "uniform").pvalue > 1e-3
    assert torch.equal(u.double(), uniform(KEY, (1000, 200), dtype=torch.float64, backend=backend))


def test_uniform_is_open_and_exact():
    ends = reference.to_uniform(torch.tensor([0, 511, 512, 2**32 - 1]), torch.float32).tolist()
    assert ends == [2.0**-24, 2.0**-24, 3 * 2.0**-24, 1 - 2.0**-24]


# ---------------------------------------------------------------- normal


def _normal_error(w: np.ndarray) -> float:
    """The largest |cpu - reference| / max(1, |z|); the reference in float64."""
    out = np.empty(w.size, np.float32)
    _normals_of(w.astype(np.uint32), out)
    exact = reference.to_normal(torch.from_numpy(w.astype(np.int64)), torch.float64).numpy()
    assert np.isfinite(out).all() and (np.sign(out) == np.sign(exact)).all()
    return float((np.abs(out - exact) / np.maximum(1, np.abs(exact))).max())


def test_normal_error_at_the_extremes():
    k = np.arange(2**16)
    assert _normal_error(np.concatenate([k, 2**31 - 1 - k, 2**31 + k, 2**32 - 1 - k])) <= 1e-6
    powers = 2 ** np.arange(32)
    near = np.concatenate([powers + d for d in range(-2, 3)])
    near = np.concatenate([near, 2**31 - 1 - near, 2**31 + near, 2**32 - 1 - near]) % 2**32
    assert _normal_error(near) <= 1e-6


@pytest.mark.parametrize("start", range(4))
def test_normal_error_on_a_dense_sweep(start):
    assert _normal_error(np.arange(1021 * start, 2**32, 4 * 1021 - 1)) <= 1e-6


def test_normal_error_on_random_words():
    for part in range(10):  # 50 M words
        assert _normal_error(words(Key(3), 5_000_000, part * 5_000_000).numpy()) <= 1e-6


def test_normal_reference_is_the_inverse_of_the_distribution_function():
    w = torch.tensor([0, 1, 2**30, 2**31 - 2, 2**31 - 1, 2**31, 2**31 + 1, 3 * 2**30, 2**32 - 1])
    z = reference.to_normal(w, torch.float64)
    tail = [(0.5 - (v + 0.5) * 2.0**-32) if v < 2**31 else ((v - 2**31) + 0.5) * 2.0**-32 for v in w.tolist()]
    assert z.abs().numpy() == pytest.approx(stats.norm.isf(np.minimum(tail, 0.5)), rel=1e-9, abs=1e-16)
    assert torch.equal(z.sign(), torch.where(w < 2**31, 1.0, -1.0).double())
    assert torch.equal(z, -reference.to_normal(2**32 - 1 - w, torch.float64))
    assert float(z.max()) == pytest.approx(6.3379578, abs=1e-6)


@pytest.mark.parametrize("backend, n", [("reference", 2_000_000), ("cpu", 2_000_000)])
def test_normal_moments(backend, n):
    z = normal(Key(11), n, backend=backend).double().numpy()
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10395 - 225)):
        assert abs((z**power).mean() - moment) < 5 * math.sqrt(spread / n)
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert abs((z[1:] * z[:-1]).mean()) < 5 / math.sqrt(n)
    for lag in (4, 1024):
        assert abs((z[lag:] * z[:-lag]).mean()) < 5 / math.sqrt(n)


def test_normal_tail():
    n = 40_000_000
    tail = sum(int((normal(Key(5), n // 10, i * (n // 10)).abs() > 4.5).sum()) for i in range(10))
    expected = n * math.erfc(4.5 / math.sqrt(2))
    assert abs(tail - expected) < 5 * math.sqrt(expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_normal_dtypes(dtype):
    z = normal(KEY, (3, 5), dtype=dtype)
    assert z.dtype == dtype and z.shape == (3, 5)
    torch.testing.assert_close(z.float(), normal(KEY, (3, 5)), rtol=1e-2, atol=1e-3)


# ---------------------------------------------------------------- keys


def test_key_arguments():
    assert Key(-1) == Key(2**64 - 1) and Key(2**64 + 3) == Key(3)
    assert Key(1, step=2**32 - 1).step == 2**32 - 1
    for make, field in (
        (lambda: Key(1, step=2**32), "step"),
        (lambda: Key(1, step=-1), "step"),
        (lambda: Key(1, stream=2**32), "stream"),
        (lambda: Key(1).at(step=2**32), "step"),
        (lambda: Key(1.5), "seed"),  # type: ignore[arg-type]
        (lambda: Key(1).fold(1.5), "data"),  # type: ignore[arg-type]
    ):
        with pytest.raises(AimcError) as caught:
            make()
        assert caught.value.field == field
    with pytest.raises(AimcError, match="'programming'"):
        Key(1).at("programing")
    with pytest.raises(AttributeError):
        KEY.seed = 2  # type: ignore[misc]


def test_streams_are_never_renumbered():
    names = "device programming drift read faults modifier output_noise probe pulses_x pulses_d time"
    for number, name in enumerate([*names.split(), "bootstrap", "data"], start=1):
        assert STREAMS[name] == number
    assert len(set(STREAMS.values())) == len(STREAMS)
    assert Key(5).at("pulses_d", 3) == Key(5, 10, 3)


def test_fold_is_fixed_and_keeps_stream_and_step():
    key = KEY.fold("layer1", 2)
    assert (key.stream, key.step) == (KEY.stream, KEY.step)
    assert key == KEY.fold("layer1").fold(2) != KEY.fold(2, "layer1")
    assert KEY.fold() == KEY and KEY.fold("3") != KEY.fold(3)
    low, high, *_ = reference.block((3, 1, 0, 2**32 - 1), (7, 9))
    assert Key(9 << 32 | 7).fold(2**32 + 3).seed == high << 32 | low
    # recorded: a change here changes every result
    assert Key(0).fold("layer1", 2).seed == 2517203290070131037
    assert len({Key(s).fold(d).seed for s in range(30) for d in range(30)}) == 900


def test_streams_steps_and_folds_are_independent():
    n = 100_000
    keys = [Key(5), Key(6), Key(5 << 32), *(Key(5).at(name) for name in STREAMS), Key(5, 0, 1), Key(5, 1, 1)]
    keys += [Key(5).fold(0), Key(5).fold(1), Key(5).fold("0"), Key(5).fold(0, 1), Key(0), Key(0).fold(0)]
    z = torch.stack([normal(key, n) for key in keys]).double()
    correlation = z @ z.T / n - torch.eye(len(keys), dtype=torch.float64)
    off = correlation - torch.diag(correlation.diagonal())
    assert float(off.abs().max()) < 5.5 / math.sqrt(n)
    assert len({tuple(words(key, 4).tolist()) for key in keys}) == len(keys)
    # ranks, not only products: pairs fill the unit square evenly
    u = uniform(Key(5).at("read", 1), n), uniform(Key(5).at("read", 2), n)
    cells = torch.bincount((u[0] * 16).long() * 16 + (u[1] * 16).long(), minlength=256)
    assert stats.chisquare(cells.numpy()).pvalue > 1e-4


# ---------------------------------------------------------------- bernoulli, log_uniform, permutation


@pytest.mark.parametrize("backend", BODIES)
def test_bernoulli(backend):
    n = 400_000
    for p in (1e-3, 0.25, 0.5, 0.9):
        b = bernoulli(KEY, (n // 4, 4), p, backend=backend)
        assert b.dtype == torch.bool and b.shape == (n // 4, 4)
        assert abs(int(b.sum()) - n * p) < 5 * math.sqrt(n * p * (1 - p))
    assert not bernoulli(KEY, n, 0.0, backend=backend).any() and bernoulli(KEY, n, 1.0, backend=backend).all()
    # the threshold is exact on the word
    w = words(KEY, n)
    for word in (int(w.min()), int(w[17]), int(w.max())):
        b = bernoulli(KEY, n, word / 2**32, backend=backend)
        assert torch.equal(b, w < word)
        assert torch.equal(bernoulli(KEY, n, (word + 1) / 2**32, backend=backend), w <= word)


def test_log_uniform():
    draws = [log_uniform(Key(2).fold(i), 1e-3, 1e5) for i in range(2000)]
    assert min(draws) >= 1e-3 and max(draws) <= 1e5
    assert stats.kstest((np.log10(draws) + 3) / 8, "uniform").pvalue > 1e-3
    low, high = words(KEY, 2).tolist()
    u = ((low << 21 | high >> 11) + 0.5) / 2**53
    assert log_uniform(KEY, 2.0, 50.0) == pytest.approx(2 * 25**u, rel=1e-14)
    assert log_uniform(KEY, 0.1, 0.1) == 0.1


@pytest.mark.parametrize("backend", BODIES)
def test_permutation(backend):
    for n in (0, 1, 2, 1000):
        assert sorted(permutation(KEY, n, backend=backend).tolist()) == list(range(n))
    counts = np.zeros(24)
    for i in range(2400):
        order = permutation(Key(8, step=i), 4, backend=backend).tolist()
        counts[sum(math.factorial(3 - k) * sum(v < order[k] for v in order[k + 1 :]) for k in range(4))] += 1
    assert stats.chisquare(counts).pvalue > 1e-4
    assert torch.equal(permutation(KEY, 999, backend=backend), permutation(KEY, 999))


# ---------------------------------------------------------------- errors


DRAWS = {
    "words": lambda **kw: words(KEY, 4, **kw),
    "uniform": lambda **kw: uniform(KEY, 4, **kw),
    "normal": lambda **kw: normal(KEY, 4, **kw),
    "bernoulli": lambda **kw: bernoulli(KEY, 4, 0.5, **kw),
    "permutation": lambda **kw: permutation(KEY, 4, **kw),
}


@pytest.mark.parametrize("name", DRAWS)
def test_backend_never_falls_back(name):
    for kw in ({"backend": "cuda"}, *({"backend": "cpu", "device": device} for device in ("cuda", "meta"))):
        with pytest.raises(AimcError) as caught:
            DRAWS[name](**kw)
        assert caught.value.field == "backend"


def test_errors_name_the_argument():
    for call, field in (
        (lambda: normal(KEY, 4, dtype=torch.float64, backend="cpu"), "backend"),
        (lambda: normal(KEY, 4, dtype=torch.int64), "dtype"),
        (lambda: uniform(KEY, 4, dtype=torch.float16), "dtype"),
        (lambda: words(KEY, -1), "n"),
        (lambda: words(KEY, 2, 2**63 - 1), "offset"),
        (lambda: uniform(KEY, (3, -2)), "shape"),
        (lambda: uniform(KEY, 3, -1), "offset"),
        (lambda: bernoulli(KEY, 3, 1.5), "p"),
        (lambda: bernoulli(KEY, 3, math.nan), "p"),
        (lambda: log_uniform(KEY, 0.0, 1.0), "low"),
        (lambda: log_uniform(KEY, 2.0, 1.0), "high"),
    ):
        with pytest.raises(AimcError) as caught:
            call()
        assert caught.value.field == field


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_is_the_same():
    assert torch.equal(words(KEY, 1001, 3, device="cuda").cpu(), words(KEY, 1001, 3))
    assert torch.equal(uniform(KEY, 1001, 3, device="cuda").cpu(), uniform(KEY, 1001, 3))
    z = normal(KEY, 1001, 3, device="cuda").cpu()
    torch.testing.assert_close(z, normal(KEY, 1001, 3), rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- threads and processes


def test_run_chunks(threads):
    threads(3)
    for total in (0, 1, 63, 64, 65, 1000, 12345):
        seen = []
        run_chunks(lambda a, b, seen=seen: seen.append((a, b)), total, 50)
        covered = sorted(seen)
        assert [i for a, b in covered for i in range(a, b)] == list(range(total))
        assert all(a < b for a, b in covered) and len(covered) <= 3

    for where in range(3):  # in a worker or in the caller

        def fail(a, b, where=where):
            if a // 320 == where:
                raise RuntimeError("here")

        with pytest.raises(RuntimeError, match="here"):
            run_chunks(fail, 1000, 50)

    counts = []
    run_chunks(lambda a, b: run_chunks(lambda c, d: counts.append(d - c), b - a, 1), 3000, 50)  # no deadlock
    assert sum(counts) == 3000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_works_after_fork(threads):
    threads(2)
    expected = normal(KEY, 3_000_000).numpy()  # the pool exists before the fork
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            # memory from numpy: torch's own OpenMP kernels hang after a fork, and conftest.py has them fill
            # every large torch.empty
            out, args = np.empty(3_000_000, np.float32), cpu.key_words(KEY)
            run_chunks(lambda a, b: cpu.fill_normals(out[a:b], b - a, *args, a), out.size, 1 << 19)
            small = normal(KEY, 1000).numpy()
            code = 0 if np.array_equal(out, expected) and np.array_equal(small, expected[:1000]) else 2
        finally:
            os._exit(code)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail("the child hangs")
