"""``/account``: who you are, what you may have, and the API keys of the account (an addition of ours)."""

from api.errors import not_found
from api.improvmx import answers, wire
from api.improvmx.requests import NewApiKey
from api.improvmx.wire import Json
from api.operation import Call, Operation
from forwarder.store import accounts, domains


async def show(call: Call) -> Json:
    """The account and its limits."""
    return {"account": wire.account(call.account, call.plan), "success": True}


async def whitelabels(call: Call) -> Json:
    """The parents' domains that the account's domains name."""
    found = await call.rooms.database.read(lambda conn: domains.whitelabels(conn, call.account.id))
    return {"whitelabels": [{"name": name} for name in found], "success": True}


async def list_keys(call: Call) -> Json:
    """The keys, those revoked last among them; never the secrets."""
    found = await call.rooms.database.read(lambda conn: accounts.list_keys(conn, call.account.id))
    return {"keys": [wire.api_key(key) for key in found], "success": True}


async def add_key(call: Call) -> Json:
    """A further key; the one time it is shown."""
    new = accounts.new_key()
    form: NewApiKey = call.body
    key = await call.rooms.database.change(
        lambda conn: accounts.add_key(
            conn, call.account.id, form.name, new.digest, new.prefix, call.now, limit=call.plan.api
        )
    )
    return {"key": wire.api_key(key), "api_key": new.secret, "success": True}


async def revoke_key(call: Call) -> Json:
    """Void a key; the one the request came with may be it."""
    number = call.path["key"]
    if not (number.isascii() and number.isdigit() and len(number) < 19):
        raise not_found("API key")
    gone = await call.rooms.database.change(
        lambda conn: accounts.revoke_key(conn, call.account.id, int(number), call.now)
    )
    if not gone:
        raise not_found("API key")
    return {"success": True}


OPERATIONS = (
    Operation(
        method="GET",
        path="/v3/account",
        name="getAccount",
        summary="Get details about your account",
        tag="Account",
        handler=show,
        answer=answers.AccountAnswer,
    ),
    Operation(
        method="GET",
        path="/v3/account/whitelabels",
        name="listWhitelabels",
        summary="Get whitelabeled domains",
        tag="Account",
        handler=whitelabels,
        answer=answers.WhitelabelsAnswer,
    ),
    Operation(
        method="GET",
        path="/v3/account/keys",
        name="listApiKeys",
        summary="List your API keys",
        tag="API keys",
        handler=list_keys,
        answer=answers.KeysAnswer,
        note="An addition to ImprovMX's API.",
    ),
    Operation(
        method="POST",
        path="/v3/account/keys",
        name="addApiKey",
        summary="Make a further API key",
        tag="API keys",
        handler=add_key,
        body=NewApiKey,
        answer=answers.NewKeyAnswer,
        note="An addition to ImprovMX's API. The key is shown this once; only its hash is stored.",
    ),
    Operation(
        method="DELETE",
        path="/v3/account/keys/{key}",
        name="revokeApiKey",
        summary="Revoke an API key",
        tag="API keys",
        handler=revoke_key,
        answer=answers.Answer,
        refusals=(404,),
        note="An addition to ImprovMX's API. In force at once; a key may revoke itself.",
    ),
)
