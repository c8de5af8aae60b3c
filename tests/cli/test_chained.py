"""The parts of a chain by name: what the command line makes of them."""

import pytest
from toys import build, choices, compose, composed_choices

import mad
from mad.cli import known
from mad.cli.compose import cell_of
from mad.defenses import Chain, MadArgmax, Prada, Rounding
from mad.errors import MadError


def chained(parts, *more):
    return cell_of(compose("defense=chain", f"defense.parts={parts}", *more)).defense


def test_parts_are_named_on_the_command_line():
    assert chained("[mad_argmax,prada]") == Chain(parts=[MadArgmax(0.95), Prada()])
    found = chained("[{mad_argmax: {epsilon: 0.5}}, {prada: null}]", "defense.epsilon=0.7")
    assert found == Chain(0.7, [MadArgmax(0.5), Prada()])
    assert chained("[{_target_: mad.defenses.rounding.Rounding, decimals: 2}]") == Chain(parts=[Rounding(decimals=2)])
    assert chained("[{chain: {parts: [rounding]}}]") == Chain(parts=[Chain(parts=[Rounding()])])
    trained = chained("[{mad: {surrogate: trained, epsilon: 1}}]", "trainer=paper").parts[0].surrogate
    assert trained.trainer == build(compose("trainer=paper").victim).trainer
    deeper = chained("[{mad: {surrogate: trained, surrogate/architecture: mlp}}, {mad: {surrogate: {}}}]").parts
    assert [each.surrogate.name for each in deeper] == ["trained", "random"]
    assert deeper[0].surrogate.architecture.func.__name__ == "MLP"
    assert mad.load("defense=chain", "defense.parts=[rounding,prada]").defense == Chain(parts=[Rounding(), Prada()])


@pytest.mark.parametrize("name", [name for name in choices("defense") if name != "chain"])
def test_every_choice_may_be_a_part(name):
    assert chained(f"[{name}]", "victim.validation=0.1").parts[0] == build(composed_choices("defense")[name])


def test_a_folder_of_ones_own_is_looked_in(tmp_path):
    (tmp_path / "defense").mkdir()
    (tmp_path / "defense" / "rough.yaml").write_text("_target_: mad.defenses.rounding.Rounding\ndecimals: 3\n")
    found = mad.load("defense=chain", "defense.parts=[rough]", config_dir=tmp_path).defense
    assert found == Chain(parts=[Rounding(decimals=3)])
    assert known.find(compose("defense=chain", "defense.parts=[rough]")) is None


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ("[pradda]", r"unknown defense 'pradda': choose from .*\(did you mean prada\?\)"),
        ("[{mad: {epsilom: 1}}]", r"unknown key 'epsilom' in part mad of defense.parts: .*\(did you mean epsilon\?\)"),
        ("[{mad: {surrogate: {layers: 1}}}]", r"unknown key 'layers' in surrogate of part mad"),
        ("[{mad: {surrogate: other}}]", r"unknown defense/surrogate 'other'"),
        ("[{mad: {epsilon: 1}, prada: {}}]", r"a part in defense.parts is a name such as prada, .* got {"),
        ("[{mad: 3}]", r"a part in defense.parts is a name such as prada"),
        ("[3]", r"a part in defense.parts is a name such as prada, .* got 3"),
    ],
)
def test_a_wrong_part_is_one_line(parts, why):
    with pytest.raises(MadError, match=why) as error:
        chained(parts)
    assert "\n" not in str(error.value)
