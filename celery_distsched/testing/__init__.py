"""The promises of `celery_distsched.drivers.Driver`, as tests that every driver runs.

A driver of your own is checked by a class of your own, which pytest collects::

    class TestMyDriver(DriverContract):
        def make_driver(self, **settings):
            return MyDriver(StoreUrl.parse("mine://localhost"), **settings)

`WireContract` is the same and what must happen when the network fails; it asks for two things more, see there.
All drivers that one test makes must reach the same store; nothing that an earlier test left in it matters.
``pytest.register_assert_rewrite("celery_distsched.testing")`` before the import makes failures tell their values.
"""

from celery_distsched.testing.conduct import ConductContract
from celery_distsched.testing.ledger import LedgerContract
from celery_distsched.testing.membership import MembershipContract
from celery_distsched.testing.network import NetworkContract, Wire

__all__ = ["DriverContract", "Wire", "WireContract"]


class DriverContract(ConductContract, MembershipContract, LedgerContract):
    """One test a promise at least, numbered as in `Driver`; a node here is a driver with a client of its own."""


class WireContract(DriverContract, NetworkContract):
    """`DriverContract`, and the promises that a failing network puts to the test."""
