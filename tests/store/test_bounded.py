"""The cache that is bounded by the octets of what it holds."""

from forwarder.store.bounded import ENTRY, Bounded


def test_what_was_used_least_recently_goes_first() -> None:
    cache: Bounded[str, int] = Bounded(3 * (ENTRY + 10))
    for number, key in enumerate("abc"):
        cache.put(key, number, 10)
    assert cache.get("a") == 0
    assert cache.peek("b") == 1  # not a use
    cache.put("d", 3, 10)
    assert [cache.peek(key) for key in "abcd"] == [0, None, 2, 3]
    assert (len(cache), cache.weight) == (3, 3 * (ENTRY + 10))


def test_a_heavy_value_takes_the_place_of_many_and_a_too_heavy_one_of_all() -> None:
    cache: Bounded[str, str] = Bounded(3 * ENTRY + 30)
    for key in "abc":
        cache.put(key, key, 10)
    cache.put("heavy", "h", ENTRY + 20)
    assert [cache.peek(key) for key in ("a", "b", "c", "heavy")] == [None, None, "c", "h"]
    cache.put("vast", "v", 100 * ENTRY)
    assert (len(cache), cache.peek("vast")) == (1, "v")
    cache.put("a", "a", 10)
    assert (len(cache), cache.weight) == (1, ENTRY + 10)


def test_a_value_put_again_or_forgotten_weighs_once_or_nothing() -> None:
    cache: Bounded[str, int] = Bounded(10 * ENTRY)
    cache.put("a", 1, 10)
    cache.put("a", 2, 20)
    assert (cache.get("a"), cache.weight) == (2, ENTRY + 20)
    cache.forget("a")
    cache.forget("a")
    assert (cache.get("a"), cache.weight, len(cache)) == (None, 0, 0)
    cache.put("b", 1, 10)
    cache.clear()
    assert (cache.get("b"), cache.weight) == (None, 0)
