"""`stones run` refuses a profile before anything runs, and says where and why."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import ROOT, environment, invoke

from profiles.document import ProfileError, read
from profiles.run_profiles import parse
from stones_cli.status import Status


def loaded(path):
    return parse(read(path, "p.yaml"), "p")


def test_reading_a_profile_imports_no_torch():
    script = "import sys; from profiles.run_profiles import load; load('ci'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment(), check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("", "1:1", "nothing to run"),
        ("inspect: []\n", "1:1", "nothing to run"),
        ("inspects: all\n", "2:1", "did you mean inspect?"),
        ("inspect: 3\n", "2:1", "neither a list of stones nor all"),
        ("inspect: {stone: gn}\n", "2:1", "neither a list of stones nor all"),
        ("inspect: [3]\n", "2:11", "a mapping with the key stone is due"),
        ("inspect: [[gn]]\n", "2:11", "a mapping with the key stone is due"),
        ("inspect: gnn\n", "2:1", "did you mean gn?"),
        ("inspect:\n  - gn\n  - gnn\n", "4:5", "did you mean gn?"),
        ("inspect: [{options: {}}]\n", "2:11", "the key stone is missing"),
        ("inspect: [{stone: gn, expct: []}]\n", "2:23", "did you mean expect?"),
        ("inspect: [{stone: gn, options: {groops: 3}}]\n", "2:33", "did you mean groups?"),
        ("inspect: [{stone: gn, options: {groups: 7}}]\n", "2:33", "does not divide 64"),
        ("inspect: [{stone: gn, input: 8x64xx2}]\n", "2:23", "such as 8x64x32x32"),
        ("inspect: [{stone: gn, input: 8x64x2x2x2x2}]\n", "2:23", "2 to 5 sizes"),
        ("inspect: [{stone: gn, dtype: float31}]\n", "2:23", "did you mean float32?"),
        ("inspect: [{stone: bn-only, dtype: float64}]\n", "2:28", "is for layers"),
        ("inspect: [{stone: gn, expect: params=1}]\n", "2:23", "a list is due"),
        ("inspect: [{stone: gn, expect: [params]}]\n", "2:32", "is not of the form key=value"),
        ("inspect: [{stone: gn, expect: [3]}]\n", "2:32", "is not text"),
        ("inspect: [{stone: gn, expect: [parms=3]}]\n", "2:32", "did you mean params?"),
        ("inspect: ['os:system']\n", "2:11", "must not make other code run"),
        ("inspect: ['torch.nn:/x.py:L']\n", "2:11", "must not make other code run"),
        ("inspect: ['torch.nn:Nosuch']\n", "2:11", "has no 'Nosuch'"),
        ("inspect: ['torch.hub:load']\n", "2:11", "must not make other code run"),
        ("check-invariance: ['torch.nn:GroupNorm']\n", "2:20", "no stone is called"),
        ("check-invariance: [svb]\n", "2:20", "svb is no layer"),
        ("check-invariance: [drconv]\n", "2:20", "claims no invariances"),
        ("check-invariance: [{stone: ln, properties: [w-scal]}]\n", "2:45", "did you mean w-scale?"),
        ("check-gradients: [{stone: ln, carriers: [line]}]\n", "2:42", "did you mean linear?"),
        ("check-identities: [{stone: ln, carriers: [linear]}]\n", "2:32", "unknown key"),
        ("check-identities: [indirect-conv, {}]\n", "2:35", "the key stone is missing"),
        ("bench: spede\n", "2:1", "did you mean speed?"),
        ("bench: 3\n", "2:1", "the name of a bench profile, or a mapping"),
        ("bench: {stones: [gn], getes: []}\n", "2:23", "did you mean gates?"),
        ("bench: {stones: [gn], gates: [{of: bn, vs: copy, max_ratio: 1}]}\n", "2:32", "no stone of this profile"),
        ("schema: 3\n", "2:1", "given twice"),
        ("inspect: &a [*a]\n", "1:1", "stands inside"),
        ("inspect: !!python/object/apply:os.system [id]\n", "2:10", "is not admitted"),
    ],
)
def test_a_refusal_comes_before_anything_runs_and_says_where_and_why(profile, text, where, words):
    with pytest.raises(ProfileError) as caught:
        loaded(profile(text))
    message = str(caught.value)
    assert message.startswith(f"p.yaml:{where}: ")
    assert words in message
    assert "\n" not in message


def test_another_schema_is_refused(tmp_path):
    path = tmp_path / "p.yaml"
    for schema in ("stones.run/2", "stones.race-profile/1", "3"):
        path.write_text(f"batch: 3\nschema: {schema}\ninspect: all\n")
        with pytest.raises(ProfileError, match=r"p\.yaml:2:1: schema: .*(reads stones\.run/1|is not text)"):
            loaded(path)


def test_a_wrong_profile_is_status_2_with_nothing_on_standard_output(profile):
    result = invoke("run", profile("inspect: gnn\n"))
    assert (result.exit_code, result.stdout) == (Status.MISUSE, "")
    assert "did you mean gn?" in result.stderr
    assert invoke("run", "nosuch").exit_code == Status.MISUSE
    assert "did you mean speed?" in invoke("run", "sped").stderr
