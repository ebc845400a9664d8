"""What a set says is what its file gives back, what it means does not change, bad files say why."""

from __future__ import annotations

import pickle
from pathlib import Path

import msgspec
import pytest
import safetensors
import safetensors.torch
import torch

from saif_fast.edits import Edit
from saif_fast.latent_set import (
    Latent,
    LatentSet,
    Provenance,
    SaeReference,
    Site,
    SiteTensors,
)
from saif_fast.request import check_combination

D_MODEL = 8
KEY = "saif_latent_set"
SAE = SaeReference("sae-a", "hash-a", "jumprelu", 32, "blocks.3.hook_resid_post", "tiny")
EDITS = ["add:2", "clamp:3", "at_least:1", "scale:2", "ablate", "add:1@gated", "project:4"]


def site(layer: int, edits: list[str], *, vector: bool = False, seed: int = 0) -> SiteTensors:
    generator = torch.Generator().manual_seed(seed)
    k = len(edits)
    latents = [
        Latent(index=3 * i, edit=Edit.parse(text), consistency=0.5) for i, text in enumerate(edits)
    ]
    return SiteTensors(
        Site(layer=layer, latents=latents, sae=SAE),
        W_enc=torch.randn(k, D_MODEL, generator=generator),
        b_enc=torch.randn(k, generator=generator),
        threshold=torch.rand(k, generator=generator),
        W_dec=torch.randn(k, D_MODEL, generator=generator),
        vector=torch.randn(D_MODEL, generator=generator) if vector else None,
    )


def example() -> LatentSet:
    return LatentSet(
        (site(1, ["clamp:3"], vector=True), site(3, EDITS)),
        d_model=D_MODEL,
        num_layers=4,
        provenance=Provenance(method="saif", k=15, beta=0.5, seed=7, notes={"a": "b"}),
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return example().save(tmp_path / "set.safetensors")


def rewrite(path: Path, **header_changes: object) -> Path:
    """The same tensors under another header."""
    with safetensors.safe_open(path, framework="pt") as file:
        header = msgspec.json.decode(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    header.update(header_changes)
    safetensors.torch.save_file(tensors, path, {KEY: msgspec.json.encode(header).decode()})
    return path


def test_load_gives_back_every_field(saved: Path) -> None:
    loaded, original = LatentSet.load(saved), example()
    assert loaded.provenance == original.provenance
    assert (loaded.d_model, loaded.num_layers) == (D_MODEL, 4)
    assert loaded.content_hash == original.content_hash
    for ours, theirs in zip(loaded.sites, original.sites, strict=True):
        assert ours.site == theirs.site
        assert ours.named().keys() == theirs.named().keys()
        assert all(torch.equal(t, theirs.named()[name]) for name, t in ours.named().items())


def test_hash_covers_what_steers_and_nothing_else() -> None:
    base = example()
    other_story = LatentSet(base.sites, D_MODEL, 4, Provenance(method="made"))
    other_layer = LatentSet((site(0, ["clamp:3"], vector=True), base.sites[1]), D_MODEL, 4)
    other_edit = LatentSet((base.sites[0], site(3, ["add:2.5", *EDITS[1:]])), D_MODEL, 4)
    other_row = LatentSet((base.sites[0], site(3, EDITS, seed=1)), D_MODEL, 4)
    other_window = LatentSet(base.sites, D_MODEL, 4, defaults={"saif_stop": 8})
    assert other_story.content_hash == base.content_hash
    hashes = {s.content_hash for s in (base, other_layer, other_edit, other_row, other_window)}
    assert len(hashes) == 5


def test_a_window_of_its_own_is_kept_in_the_file(tmp_path: Path) -> None:
    base = example()
    made = LatentSet(base.sites, D_MODEL, 4, defaults={"saif_scope": "all", "saif_decay": "0.05"})
    loaded = LatentSet.load(made.save(tmp_path / "windowed.safetensors"))
    assert loaded.defaults == made.defaults and loaded.content_hash == made.content_hash
    assert (loaded.header.format, base.header.format) == (2, 1)  # older readers know the other one


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"saif": "other"}, "defaults: expected keys among saif_scope, .*, got 'saif'"),
        ({"saif_stop": 0}, "saif_stop: expected an integer >= 1"),
        ({"saif_scope": "prompt", "saif_stop": 2}, "saif_stop: expected none with saif_scope"),
    ],
    ids=["key", "value", "pair"],
)
def test_defaults_that_no_request_could_say_are_refused(
    defaults: dict[str, str | int | float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LatentSet(example().sites, D_MODEL, 4, defaults=defaults)


def test_compiling_folds_constants_and_keeps_the_rest() -> None:
    latent_set = example()
    edits = latent_set.edits_at(3)
    # Only "add:2" is constant; the gated addition needs the encoder.
    torch.testing.assert_close(edits.vector, 2.0 * latent_set.sites[1].W_dec[0])
    assert edits.W_enc.shape[0] == len(EDITS) - 1 == latent_set.n_live[3]
    torch.testing.assert_close(edits.W_dec, latent_set.sites[1].W_dec[1:])
    expected = [Edit.parse(text).coefficients for text in EDITS[1:]]
    assert list(zip(edits.p.tolist(), edits.q.tolist(), edits.lo.tolist(), strict=True)) == expected
    assert edits.gated.tolist() == [text.endswith("@gated") for text in EDITS[1:]]
    assert torch.equal(latent_set.edits_at(1).vector, latent_set.sites[0].vector)
    assert latent_set.edits_at(0).vector.abs().max() == 0


def test_a_scaled_set_of_constants_does_what_the_strength_did() -> None:
    made = LatentSet((site(3, ["add:2", "add:5"], vector=True),), D_MODEL, 4)
    doubled = made.scaled(2.0)
    expected = 2.0 * made.edits_at(3).vector
    torch.testing.assert_close(doubled.edits_at(3).vector, expected)
    assert doubled.content_hash != made.content_hash == made.scaled(1.0).content_hash
    live = LatentSet((site(3, ["clamp:3", "add:1@gated", "ablate"]),), D_MODEL, 4).scaled(2.0)
    assert [str(x.edit) for x in live.sites[0].site.latents] == [
        "clamp:6.0",
        "add:2.0@gated",
        "ablate",
    ]
    with pytest.raises(ValueError, match="edit value: expected a number between"):
        made.scaled(1e7)


def test_last_layer_constant() -> None:
    constant = LatentSet((site(3, ["add:1", "add:2"]),), D_MODEL, 4)
    live = LatentSet((site(3, ["add:1", "clamp:2"]),), D_MODEL, 4)
    lower = LatentSet((site(2, ["add:1"]),), D_MODEL, 4)
    flags = [s.is_last_layer_constant for s in (constant, live, lower)]
    assert flags == [True, False, False]


def test_another_models_set_is_refused_by_shape() -> None:
    example().check_model(D_MODEL, 4)
    with pytest.raises(ValueError, match=r"hidden size 8 and 4 layers, but .* 16 and 4"):
        example().check_model(16, 4)
    with pytest.raises(ValueError, match="hidden size 8 and 12 layers"):
        example().check_model(D_MODEL, 12)


def test_describe_names_every_latent_and_the_source() -> None:
    text = example().describe()
    for fragment in ("layer 3", "clamp:3", "sae-a", "consistency 0.5", "method saif", "beta: 0.5"):
        assert fragment in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.unlink(), "no such file"),
        (lambda p: p.write_bytes(p.read_bytes()[:-9]), "not a complete safetensors file"),
        (lambda p: p.write_bytes(b""), "not a complete safetensors file"),
        (lambda p: p.write_bytes(pickle.dumps({"a": 1})), "not a complete safetensors file"),
        (lambda p: safetensors.torch.save_file({"a": torch.ones(1)}, p), "not a latent set"),
        (lambda p: rewrite(p, format=99), "format 99 is newer .* upgrade"),
        (lambda p: rewrite(p, sites=[]), "unexpected tensors"),
        (lambda p: rewrite(p, d_model="8"), r"Expected `int`, got `str` - at `\$.d_model`"),
        (lambda p: rewrite(p, d_model=9), "expected .*9"),
        (lambda p: p.write_bytes(p.read_bytes()[:-4] + b"\0\0\0\0"), "does not match its hash"),
    ],
    ids=["missing", "truncated", "empty", "pickle", "other-safetensors", "newer", "no-sites",
         "wrong-type", "wrong-shape", "flipped-bits"],
)  # fmt: skip
def test_a_bad_file_says_what_is_wrong(saved: Path, damage: object, message: str) -> None:
    damage(saved)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message) as error:
        LatentSet.load(saved)
    assert str(error.value).startswith(str(saved))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LatentSet((), D_MODEL, 4), "sites"),
        (lambda: LatentSet((site(3, EDITS), site(1, EDITS)), D_MODEL, 4), "ascending"),
        (lambda: LatentSet((site(4, EDITS),), D_MODEL, 4), "layer: expected 0 to 3, got 4"),
        (lambda: LatentSet((site(3, []),), D_MODEL, 4), "at least one latent"),
        (lambda: LatentSet((site(3, EDITS),), 9, 4), "W_enc: expected"),
        (lambda: LatentSet.from_vector(torch.full((8,), torch.nan), layer=0, num_layers=1),
         "vector: expected finite"),
    ],
    ids=["no-sites", "order", "layer", "nothing", "d_model", "nan"],
)  # fmt: skip
def test_a_set_that_makes_no_sense_cannot_be_made(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


def test_a_direction_becomes_a_unit_projection() -> None:
    edits = LatentSet.from_direction(torch.arange(1.0, 9.0), 5.0, layer=2, num_layers=4).edits_at(2)
    assert edits.W_enc.norm() == pytest.approx(1.0)
    assert torch.equal(edits.W_enc, edits.W_dec)
    assert edits.threshold.tolist() == [-torch.inf]
    assert (edits.p.tolist(), edits.q.tolist()) == ([5.0], [-1.0])


def test_two_sets_that_set_one_latent_are_refused_and_additions_are_not() -> None:
    def one(edit: str, seed: int = 0) -> LatentSet:
        return LatentSet((site(3, [edit], seed=seed),), D_MODEL, 4)

    check_combination({"a": one("add:1"), "b": one("clamp:2")})
    check_combination({"a": one("add:1"), "b": one("add:2")})
    with pytest.raises(ValueError, match="'a' and 'b' both set latent 0 at layer 3"):
        check_combination({"a": one("scale:2"), "b": one("clamp:2")})
