"""Tempest tests of hotslot."""
