"""Profiles of settings as data: ``finwait tune plan NAME`` reads them. Each line names its source."""
