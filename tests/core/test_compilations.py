"""What XLA compiles is counted, from whatever thread, and what it does not is not."""

import threading

import jax
import jax.numpy as jnp

from llm.core.compilations import Compilations


def test_each_program_counts_once() -> None:
    x = jnp.ones(3)
    double, triple = jax.jit(lambda x: 2 * x), jax.jit(lambda x: 3 * x)
    with Compilations() as compilations:
        assert compilations.to_json() == {"count": 0, "seconds": 0, "from_cache": 0}
        double(x)
        assert compilations.count == 1
        double(x)
        assert compilations.count == 1
        other = threading.Thread(target=triple, args=(x,))
        other.start()
        other.join()
    double(jnp.ones((2, 2)))  # after it was closed
    assert compilations.count == 2 and compilations.seconds > 0


def test_those_from_the_cache_are_told_apart(tmp_path) -> None:
    from jax.experimental.compilation_cache import compilation_cache

    x = jnp.ones(5)
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        jax.config.update(names[0], str(tmp_path))
        jax.config.update(names[1], 0.0)
        compilation_cache.reset_cache()
        with Compilations() as compilations:
            jax.jit(lambda x: jnp.sin(x) + 17)(x)
            jax.clear_caches()
            jax.jit(lambda x: jnp.sin(x) + 17)(x)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    assert compilations.to_json()["count"] == 2 and compilations.to_json()["from_cache"] == 1
