"""Who may see and do what, over HTTP against the running server."""

from __future__ import annotations

import json
import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from served import OTHER_SITE, Served, problem

from hepalign_serve import audit, sites
from hepalign_serve.problems import RequestError
from hepalign_serve.records import Records
from hepalign_serve.schema import upgrade
from hepalign_serve.settings import Oidc


def test_fault_46_no_or_wrong_key(served: Served) -> None:
    key_id = served.token.split("_")[1]
    wrong = (
        None,
        "nonsense",
        f"hepalign_{key_id}_{'A' * 43}",
        f"hepalign_{'0' * 12}_{'A' * 43}",
        "eyJhbGciOiJub25lIn0.e30.",
    )
    answers = [served.call("GET", "/v1/cases", token=token) for token in wrong]
    assert len({answer.text for answer in answers}) == 1
    for answer in answers:
        problem(answer, 401, "unauthorised")
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.fixture
def gate(tmp_path: Path) -> tuple[sites.Gate, ec.EllipticCurvePrivateKey]:
    records = Records(f"sqlite:///{tmp_path / 'db'}")
    upgrade(records.engine)
    sites.add_site(records, "clinic")
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "issuer.pem").write_bytes(public)
    return sites.Gate(records, Oidc(issuer="idp", audience="hepalign", public_key_file=tmp_path / "issuer.pem")), key


def test_fault_46_tokens_of_the_identity_provider(gate: tuple[sites.Gate, ec.EllipticCurvePrivateKey]) -> None:
    door, key = gate
    claims = {"iss": "idp", "aud": "hepalign", "exp": time.time() + 60, "hepalign_site": "clinic"}

    def bearer(key: object = key, algorithm: str = "ES256", **other: object) -> str:
        return "Bearer " + jwt.encode(claims | other, key, algorithm=algorithm)  # type: ignore[arg-type]

    assert door.site(bearer()) == "clinic"
    stranger = ec.generate_private_key(ec.SECP256R1())
    refused = [
        bearer(exp=time.time() - 1),
        bearer(aud="another"),
        bearer(iss="another"),
        bearer(hepalign_site="unknown"),
        bearer(key=None, algorithm="none"),
        bearer(key=stranger),
    ]
    for token in refused:
        with pytest.raises(RequestError) as error:
            door.site(token)
        assert error.value.status == 401


def test_fault_47_another_sites_ids_look_unknown(served: Served) -> None:
    case = served.planned_case()
    with served.client() as client:
        job = client.case(case)["jobs"][0]["id"]
    paths = {
        f"/v1/cases/{case}": "/v1/cases/" + "0" * 24,
        f"/v1/jobs/{job}": "/v1/jobs/" + "0" * 24,
        f"/v1/jobs/{job}/events": "/v1/jobs/" + "0" * 24 + "/events",
        f"/v1/cases/{case}/artifacts/plan.json": f"/v1/cases/{'0' * 24}/artifacts/plan.json",
    }
    for theirs, unknown in paths.items():
        seen = served.call("GET", theirs, token=served.other_token)
        problem(seen, 404, "not_found")
        assert seen.text == served.call("GET", unknown, token=served.other_token).text
    assert served.call("DELETE", f"/v1/cases/{case}", token=served.other_token).status_code == 404
    assert served.call("GET", "/v1/cases", token=served.other_token).json() == {"cases": []}
    lines = [json.loads(line) for line in audit.export(served.records)]
    refused = [line for line in lines if line["site"] == OTHER_SITE and line["outcome"] == "not_found"]
    assert case in {line["target"] for line in refused}


def test_fault_49_no_route_promotes(served: Served) -> None:
    routes = served.call("GET", "/openapi.json", token=None).json()["paths"]
    assert not [route for route in routes if "promot" in route or ("release" in route and route != "/v1/release")]
    problem(served.call("POST", "/v1/release/promote", json={}), 404, "not_found")


def test_fault_50_site_id_cannot_be_set(served: Served) -> None:
    problem(served.call("POST", "/v1/cases", json={"site_id": "other"}), 422, "invalid_request")


def test_fault_52_revoked_and_rotated_keys(served: Served) -> None:
    records = served.records
    first = sites.add_site(records, "turning")
    second = sites.rotate(records, "turning", overlap_s=60)
    assert [served.call("GET", "/v1/cases", token=token).status_code for token in (first, second)] == [200, 200]
    third = sites.rotate(records, "turning", overlap_s=0)
    codes = [served.call("GET", "/v1/cases", token=token).status_code for token in (first, second, third)]
    assert codes == [401, 401, 200]
    sites.revoke(records, "turning")
    problem(served.call("GET", "/v1/cases", token=third), 401, "unauthorised")


def test_erasure_leaves_the_audit_line_only(served: Served) -> None:
    with served.client() as client:
        case = client.open_case()
        client.upload(case, "ict", served.images["ict"])
    folder = served.data_folder / "cases" / case
    assert folder.is_dir()
    assert served.call("DELETE", f"/v1/cases/{case}").status_code == 204
    assert not folder.exists()
    problem(served.call("GET", f"/v1/cases/{case}"), 404, "not_found")
    lines = [json.loads(line) for line in audit.export(served.records)]
    assert [line["action"] for line in lines if line["target"] == case][:3] == ["open", "upload", "erase"]
    assert audit.verify(served.records, served.settings.anchor).lines >= 3
