# rootseal verify BUNDLE --key KEY --rego examples/policy/recommended.rego
package rootseal

import rego.v1

counters := input.predicate.summary.diagnostics

default allow := false

# Counters are sums over all actions: fanotify must have been there for each of them, not for one.
allow if {
	input.predicate.summary.actions > 0
	counters.fanotifyAvailable == input.predicate.summary.actions
	counters.fanotifyTimeouts == 0
	counters.ringbufReadTapDrops == 0
}

deny contains "weaker than held" if not input.predicate.summary.posture in {"held", "sealed"}
