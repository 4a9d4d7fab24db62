"""Amazon's own client library as a child process: one JSON request a line in, one JSON answer a line out.

It judges the lab's AWS. Nothing here signs or parses by itself: botocore does.
"""

import base64
import datetime
import hashlib
import hmac
import json
import os
import struct
import sys
import threading

import boto3
import botocore.auth
import botocore.awsrequest
import botocore.config
import botocore.credentials
import botocore.exceptions
import botocore.httpsession

ENDPOINT = os.environ["LAB_ENDPOINT"]
CA_BUNDLE = os.environ["AWS_CA_BUNDLE"]
REGION = os.environ["AWS_DEFAULT_REGION"]

# The lab's clock can be moved; its clients must then sign by it.
skew = datetime.timedelta()
system_time = botocore.auth.get_current_datetime
botocore.auth.get_current_datetime = lambda *args, **kw: system_time(*args, **kw) + skew


def client(service, keys):
    return boto3.client(
        service,
        endpoint_url=ENDPOINT,
        verify=CA_BUNDLE,
        region_name=REGION,
        aws_access_key_id=keys["id"],
        aws_secret_access_key=keys["secret"],
        aws_session_token=keys.get("token"),
        config=botocore.config.Config(retries={"total_max_attempts": 1}),
    )


def call(request):
    """One operation; `pages` collects what its paginator gives."""
    api = client(request["service"], request["keys"])
    try:
        if request.get("pages"):
            paginator = api.get_paginator(request["operation"])
            return {"pages": list(paginator.paginate(**request["params"]))}
        return {"ok": getattr(api, request["operation"])(**request["params"])}
    except botocore.exceptions.ClientError as error:
        answer = error.response
        return {
            "error": answer["Error"]["Code"],
            "message": answer["Error"].get("Message", ""),
            "status": answer["ResponseMetadata"]["HTTPStatusCode"],
        }
    except botocore.exceptions.ParamValidationError:
        raise
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error), "status": 0}


def race(request):
    """The same call in several threads at once."""
    start = threading.Barrier(request["times"])
    answers = []

    def one():
        start.wait()
        answers.append(call(request))

    threads = [threading.Thread(target=one) for _ in range(request["times"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"answers": answers}


def raw(request):
    """A request signed by botocore in either form, changed after signing, and sent."""
    keys = botocore.credentials.Credentials(
        request["keys"]["id"], request["keys"]["secret"], request["keys"].get("token")
    )
    http = botocore.awsrequest.AWSRequest(
        method=request.get("method", "POST"),
        url=ENDPOINT + "/" + request.get("query", ""),
        data=request.get("body", ""),
        headers=request.get("headers", {}),
    )
    scope = (request.get("service", "sts"), request.get("region", REGION))
    if request.get("form") == "query":
        botocore.auth.SigV4QueryAuth(keys, *scope, expires=request["expires"]).add_auth(http)
    elif request.get("form") != "none":
        botocore.auth.SigV4Auth(keys, *scope).add_auth(http)
    change = request.get("change", {})
    for name, value in change.get("headers", {}).items():
        del http.headers[name]
        if value is not None:
            http.headers[name] = value
    for old, new in change.get("authorization", {}).items():
        value = http.headers["Authorization"]
        assert old in value, value
        del http.headers["Authorization"]
        http.headers["Authorization"] = value.replace(old, new)
    for old, new in change.get("url", {}).items():
        assert old in http.url, http.url
        http.url = http.url.replace(old, new)
    if "body" in change:
        http.data = change["body"]
    session = botocore.httpsession.URLLib3Session(verify=CA_BUNDLE)
    answer = session.send(http.prepare())
    return {
        "status": answer.status_code,
        "headers": {name.lower(): value for name, value in answer.headers.items()},
        "body": answer.text,
    }


def presign(request):
    """The URL that the SDK itself presigns."""
    api = client(request["service"], request["keys"])
    return {
        "url": api.generate_presigned_url(
            request["operation"],
            Params=request["params"],
            ExpiresIn=request["expires"],
            HttpMethod="GET",
        )
    }


def get(request):
    """A GET of a finished URL."""
    http = botocore.awsrequest.AWSRequest(method="GET", url=request["url"])
    answer = botocore.httpsession.URLLib3Session(verify=CA_BUNDLE).send(http.prepare())
    return {"status": answer.status_code, "body": answer.text}


def totp(request):
    """RFC 6238 written down once more, so that the emulator is not its own judge."""
    now = (system_time() + skew).replace(tzinfo=datetime.timezone.utc).timestamp()
    step = int(now) // 30 + request.get("steps", 0)
    seed = base64.b32decode(request["seed"] + "=" * (-len(request["seed"]) % 8))
    digest = hmac.new(seed, struct.pack(">q", step), hashlib.sha1).digest()
    offset = digest[-1] & 15
    number = struct.unpack(">I", digest[offset : offset + 4])[0] & 0x7FFFFFFF
    return {"code": f"{number % 1000000:06d}"}


def set_skew(request):
    global skew
    skew = datetime.timedelta(seconds=request["seconds"])
    return {}


def plain(value):
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


COMMANDS = {f.__name__: f for f in (call, race, raw, presign, get, totp, set_skew)}

for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps(COMMANDS[request["do"]](request), default=plain), flush=True)
