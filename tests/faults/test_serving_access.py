"""Who may see and do what, over HTTP against the running server."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
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


def test_fault_46_wrong_tokens_of_the_identity_provider(served: Served) -> None:
    good = served.issuer.token(OTHER_SITE)
    assert served.call("GET", "/v1/cases", token=good).status_code == 200
    stranger = ec.generate_private_key(ec.SECP256R1())
    public = (served.data_folder.parent / "issuer.pem").read_text(encoding="utf-8")
    body = good.split(".")[1]
    hmacked = jwt.utils.base64url_encode(b'{"alg":"HS256","typ":"JWT"}').decode() + "." + body
    signed = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(hmacked.encode(), public.encode())
    refused = {
        "expired": served.issuer.token(OTHER_SITE, exp=time.time() - 1),
        "without an end": served.issuer.token(OTHER_SITE, exp=None),
        "another audience": served.issuer.token(OTHER_SITE, aud="another"),
        "another issuer": served.issuer.token(OTHER_SITE, iss="another"),
        "unknown site": served.issuer.token("unknown"),
        "alg=none": served.issuer.token(OTHER_SITE, key=None, algorithm="none"),
        "another key": served.issuer.token(OTHER_SITE, key=stranger),
        "the public key as a secret": f"{hmacked}.{jwt.utils.base64url_encode(signed).decode()}",
    }
    for why, token in refused.items():
        assert served.call("GET", "/v1/cases", token=token).status_code == 401, why


def test_fault_46_keys_that_the_issuer_publishes_and_rotates(tmp_path: Path) -> None:
    records = Records(f"sqlite:///{tmp_path / 'db'}")
    upgrade(records.engine)
    sites.add_site(records, "clinic")
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("old", "new", "never published")}
    published, rsa_key = ["old"], rsa.generate_private_key(65537, 2048)

    class Published(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            algorithm = jwt.algorithms.ECAlgorithm(jwt.algorithms.ECAlgorithm.SHA256)
            listed = [
                algorithm.to_jwk(keys[n].public_key(), as_dict=True) | {"kid": n, "use": "sig"} for n in published
            ]
            rsa_algorithm = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256)
            listed.append(rsa_algorithm.to_jwk(rsa_key.public_key(), as_dict=True) | {"kid": "rsa", "use": "sig"})
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"keys": listed}).encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Published) as issuer:
        threading.Thread(target=issuer.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{issuer.server_address[1]}/keys"
        door = sites.Gate(records, Oidc(issuer="idp", audience="hepalign", jwks_url=url))

        def bearer(name: str, key: Any = None, algorithm: str = "ES256") -> str:
            claims = {"iss": "idp", "aud": "hepalign", "exp": time.time() + 60, "hepalign_site": "clinic"}
            return "Bearer " + jwt.encode(claims, key or keys[name], algorithm=algorithm, headers={"kid": name})

        assert door.site(bearer("old")) == "clinic"
        assert door.site(bearer("rsa", rsa_key, "RS256")) == "clinic"
        # A key is for its own algorithm: one that names another kind of key is refused, not an error of ours.
        for crossed in (bearer("rsa", keys["old"]), bearer("old", rsa_key, "RS256")):
            with pytest.raises(RequestError) as error:
                door.site(crossed)
            assert error.value.status == 401
        published.append("new")
        assert door._published is not None
        door._published.cooldown_duration = 0  # half a minute outside of tests: nobody makes us ask all the time
        assert door.site(bearer("new")) == "clinic"
        issuer.shutdown()
        assert door.site(bearer("old")) == "clinic"
        with pytest.raises(RequestError) as error:
            door.site(bearer("never published"))
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
