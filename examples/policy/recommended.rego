# rootseal verify BUNDLE --key KEY --rego examples/policy/recommended.rego
package rootseal

import rego.v1

counters := input.predicate.summary.diagnostics

default allow := false

allow if {
	counters.fanotifyAvailable > 0
	counters.fanotifyTimeouts == 0
	counters.ringbufReadTapDrops == 0
}

deny contains "weaker than held" if not input.predicate.summary.posture in {"held", "sealed"}
