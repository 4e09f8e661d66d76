"""Which tests answer for which script, and the mutants that no test can tell apart, each with the reason.

Owns two tables. A script without an entry is an error: whoever adds one says here which tests guard it, the likeliest
to fail first. Scripts are named by their file's name alone.
"""

from collections.abc import Mapping, Sequence

INTEGRATION = "tests/integration"

TESTS: Mapping[str, Sequence[str]] = {
    "append.lua": ("test_append", "test_desk", "test_epochs", "test_lost_replies"),
    "raise.lua": ("test_raise_guards", "test_epochs"),
    "admit.lua": ("test_admit_guards", "test_epochs"),
    "standing.lua": ("test_raise_guards", "test_epochs"),
    "report.lua": ("test_raise_guards", "test_epochs"),
    "server.lua": ("test_epochs",),
    "load.lua": ("test_load", "test_desk"),
    "lease.lua": ("test_lease", "test_projector"),
    "members.lua": ("test_lease", "test_projector"),
    "pending.lua": ("test_commit", "test_pending_guards", "test_projector"),
    "commit.lua": ("test_commit", "test_projector", "test_listing", "test_projector_faults", "test_rebuild"),
    "page.lua": ("test_reads", "test_reading_guards", "test_listing"),
    "difference.lua": ("test_reads", "test_reading_guards", "test_streams"),
    "document.lua": ("test_reads", "test_reading_guards", "test_waiting"),
    "feeds.lua": ("test_listing", "test_reading_guards"),
    "look.lua": ("test_status",),
    "lagging.lua": ("test_gauges",),
    "quarantined.lua": ("test_gauges",),
    "archived.lua": ("test_archive_guards", "test_archive"),
    "trim.lua": ("test_archive_guards", "test_archive"),
    "restore.lua": ("test_restoring",),
    "restored.lua": ("test_archive_guards", "test_restoring"),
    "redact_copy.lua": ("test_redaction", "test_redaction_guards"),
    "redact_frames.lua": ("test_redaction", "test_redaction_guards"),
    "redact_swap.lua": ("test_redaction", "test_redaction_guards"),
    "redact_traces.lua": ("test_redaction", "test_redaction_guards"),
    "documents.lua": ("test_verify_guards", "test_verify"),
    "moment.lua": ("test_verify_guards", "test_verify"),
    "records.lua": ("test_verify_guards", "test_verify"),
    "sizes.lua": ("test_verify_guards", "test_verify"),
    "walk.lua": ("test_verify_guards", "test_verify"),
    "ask.lua": ("test_rebuild_guards", "test_rebuild"),
    "before.lua": ("test_rebuild_guards", "test_rebuild"),
    "begin.lua": ("test_rebuild_guards", "test_rebuild"),
    "build.lua": ("test_rebuild", "test_builder"),
    "fail.lua": ("test_rebuild_guards", "test_rebuild", "test_builder"),
    "flip.lua": ("test_rebuild", "test_builder"),
    "outdated.lua": ("test_rebuild_guards", "test_rebuild", "test_builder"),
    "rest.lua": ("test_rebuild_guards", "test_rebuild"),
    "discard.lua": ("test_rebuild_guards", "test_quarantine"),
    "retire.lua": ("test_rebuild_guards", "test_rebuild"),
    "survey.lua": ("test_rebuild_guards", "test_rebuild", "test_builder"),
}

# By script: what was taken away, in the words of the mutant, and why nothing can tell.
EQUIVALENT: Mapping[str, Mapping[str, str]] = {
    "pending.lua": {
        "always: if entry[2][i] == 'envelope'": "contents and instants name no entry; reading them as well only costs",
    },
    "commit.lua": {
        "always: if ARGV[4] == '1'": "later commits would write once more what was compared just before",
    },
    "redact_frames.lua": {
        "without `or 0`": "a table has nothing at nil either",
    },
    "redact_swap.lua": {
        "without `ends(KEYS[2]) ~= first or`": "logs without gaps, of one length and one end, begin alike",
        "without `or redis.call('XLEN', KEYS[1]) ~= redis.call('XLEN', KEYS[2])`": "the same, said the other way",
        "without `first and`": "a log that is not there has no event of an entry to redact",
    },
}
