import numpy as np
import pytest

from agents.engines.minilm import TOKENIZER_PATH, MiniLm


@pytest.fixture(scope="module")
def embedder():
    engine = MiniLm()
    engine.setup()
    return engine


def test_the_tokenizer_ships_with_the_package():
    assert TOKENIZER_PATH.is_file()


@pytest.mark.weights
def test_vectors_have_length_one_and_do_not_depend_on_their_neighbours(embedder):
    texts = ["dog", "a man riding a bicycle down the street on a sunny day", "", "bus 🚌 <region>"]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    assert together.shape == (4, 384)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.weights
def test_near_meanings_are_near(embedder):
    ride, cycling, bus, puppy, dog = embedder.embed(["riding a bike", "cycling", "a city bus", "puppy", "dog"])
    assert ride @ cycling > 0.5 > ride @ bus
    assert puppy @ dog > 0.7


@pytest.mark.weights
def test_no_texts_give_no_rows_and_long_texts_are_cut(embedder):
    assert embedder.embed([]).shape == (0, 384)
    assert embedder.embed(["dog " * 5000]).shape == (1, 384)


@pytest.mark.weights
def test_the_label_names_the_weights():
    assert [label.split("@")[0] for label in MiniLm().weights()] == ["minilm-int8"]
