"""What the feed shows of a node beside health, positions, wallet, tip and prices: by topic and key, as the API does.

All of it is in memory: looked at twice a second, and a change costs one comparison. Ages are left out: a reader counts
from `as_of` and `since`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from node.core import Core
from node.policy import Policy
from node.projections import Topics
from node.rules import exposure, stakes_of
from node.web.backup_api import backup_view
from node.web.desk_api import policy_view, rate_view, request_view
from node.web.oracle_api import oracle_view
from node.web.outlook import Values
from node.web.views import offer_view, peer_view
from protocols.errors import WorldError

if TYPE_CHECKING:
    from node.maker import Maker
    from node.taker import Taker


def maker_topics(maker: Maker, configured: Policy, values: Values) -> Topics:
    """`configured` is the policy of the configuration."""
    from node.web.maker_api import quoted_view

    desk = maker.desk
    about: dict[str, Any] = {
        "address": str(maker.address),
        "max_exposure": desk.policy.max_exposure,
        "quoted": [quoted_view(quoted) for quoted in maker.quoting.all()],
        "withdrawn": dict(maker.board.held),
    }
    if maker.core.positions.health.up:
        with suppress(WorldError), maker.core.positions.lent() as positions:
            exposed = exposure(stakes_of(positions.all()))
            about["exposure"] = {symbol: exposed[symbol] for symbol in maker.core.feeds}
    return {
        **_topics(maker.core, values),
        "offers": {offer.id.hex(): offer_view(offer) for offer in maker.board.standing()},
        "requests": {each.id.hex(): request_view(each) for each in desk.waiting.values()},
        "policy": {"policy": policy_view(desk.policy, configured)},
        "rates": {symbol: rate_view(desk, symbol) for symbol in desk.feeds},
        "maker": {"maker": about},
    }


def taker_topics(taker: Taker, values: Values) -> Topics:
    from node.web.taker_api import maker_view

    return {
        **_topics(taker.core, values),
        "offers": taker.offers_view(),
        "makers": {identity.hex(): maker_view(taker, identity) for identity in taker.links},
    }


def _topics(core: Core, values: Values) -> dict[str, dict[str, Any]]:
    """Of every node; what a part that is down last said stays, and its health tells that it is."""
    topics: dict[str, dict[str, Any]] = {}
    if core.positions.health.up:
        with suppress(WorldError), core.positions.lent() as positions:
            topics["values"] = values.by_id(positions.all())
    if core.oracle.health.up:
        with suppress(WorldError), core.oracle.lent() as client:
            topics["oracle"] = {"oracle": oracle_view(core, client.contradictions)}
    if core.endpoint.health.up:
        with suppress(WorldError), core.endpoint.lent() as endpoint:
            topics["peers"] = {str(each.peer): peer_view(each) for each in endpoint.connections}
    if core.backup.health.up:
        with suppress(WorldError), core.backup.lent() as backup:
            topics["backup"] = {"backup": backup_view(core, backup)}
    return topics
