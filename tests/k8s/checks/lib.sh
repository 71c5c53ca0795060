# What all checks share; read by `.`, not run. Each check is one line, `ok` or `FAIL`; a figure is a line, too, with what is asked of it.
# A figure that is not reached fails only with STRICT=1: a busy machine is no fault of the network.
. "$(dirname "${BASH_SOURCE[0]}")/../settings.sh"
: "${RESULTS:=/dev/null}" # `run` counts the lines of all checks there
passed=0 failed=0
SYSTEM=kube-system
NAMESPACE=${NAMESPACE:-smoke}

line() { echo "$*" | tee -a "$RESULTS"; }
ok() { passed=$((passed + 1)); line "ok    $*"; }
fail() { failed=$((failed + 1)); line "FAIL  $*"; }
# check WHAT COMMAND...: ok when it succeeds; else FAIL with the end of what it said.
check() {
  local what=$1 said
  shift
  if said=$("$@" 2>&1); then ok "$what"; else fail "$what: $(echo "$said" | tail -n 3 | tr '\n' ' ' | cut -c1-400)"; fi
}
# figure WHAT VALUE UNIT OPERATOR BOUND: e.g. figure "nodes Ready" 12.3 s '<' 20
figure() {
  local word=reached
  if ! awk "BEGIN { exit !(\"$2\" != \"\" && $2 + 0 $4 $5) }"; then
    word="NOT REACHED"
    [ -z "${STRICT:-}" ] || failed=$((failed + 1))
  fi
  line "figure $1: ${2:-none} $3 (asked: $4 $5 $3; $word)"
}
finish() { echo "$(basename "$0"): $passed ok, $failed failed"; [ "$failed" = 0 ]; }
# contains WORD COMMAND...
contains() {
  local word=$1 said
  shift
  said=$("$@" 2>&1) || { echo "$said"; return 1; }
  [[ $said == *"$word"* ]] || { echo "no '$word' in: $said"; return 1; }
}
seconds_since() { awk "BEGIN { printf \"%.1f\", ($(now_ms) - $1) / 1000 }"; }
k() { kc -n "$NAMESPACE" "$@"; }
# new_namespace: an empty namespace $NAMESPACE, also when one of that name is still going away.
new_namespace() {
  kc delete namespace "$NAMESPACE" --ignore-not-found --timeout=120s >/dev/null 2>&1
  kc create namespace "$NAMESPACE" >/dev/null
  wait_for 30 k get serviceaccount default
}
end_namespace() { [ -n "${KEEP:-}" ] || kc delete namespace "$NAMESPACE" --ignore-not-found --timeout="${1:-120s}" >/dev/null; }

# meshnet's own pod on a node, and its meshctl.
agent() { kc -n $SYSTEM get pod -l app=meshnet --field-selector "spec.nodeName=$1" -o 'jsonpath={.items[0].metadata.name}'; }
meshctl_on() {
  local node=$1
  shift
  kc -n $SYSTEM exec "$(agent "$node")" -c meshd -- /usr/bin/meshctl "$@"
}
agents_ready() { kc -n $SYSTEM rollout status ds/meshnet --timeout="${1:-120s}"; }
nodes_ready() { kc wait --for=condition=Ready nodes --all --timeout="${1:-120s}"; }
# Pods with tools, one on each node, without a service: tool-n1, tool-n2, ...
tool_pods() {
  local node
  for node in $(nodes); do
    cat <<T
---
apiVersion: v1
kind: Pod
metadata: {name: tool-$node, namespace: $NAMESPACE, labels: {app: tool}}
spec:
  nodeName: $node
  terminationGracePeriodSeconds: 1
  tolerations: [{operator: Exists}]
  containers: [{name: tool, image: "k8s.gcr.io/e2e-test-images/agnhost:2.21", imagePullPolicy: IfNotPresent, args: [netexec, --http-port=8080]}]
T
  done | kc apply -f - >/dev/null
  k wait --for=condition=Ready pod -l app=tool --timeout=120s >/dev/null
}
address_of() { k get pod "$1" -o 'jsonpath={.status.podIP}'; }

# traces NODE: what pods could leave behind there: addresses, devices, rules, files. One line each, sorted, without counters and what lives with meshd.
traces() {
  meshctl_on "$1" ip list 2>/dev/null | awk '/cni:/ {print "address", $0}'
  on_node "$1" ip -o link | awk -F': ' '{sub(/@.*/, "", $2); print "device", $2}'
  on_node "$1" nft list ruleset 2>/dev/null | sed 's/counter packets [0-9]* bytes [0-9]*/counter/; s/ # handle.*//; s/^[ \t]*/rule /' | grep -v 'rule \(set\|}\|$\)'
  [ "$IPTABLES" = nft ] || on_node "$1" iptables-legacy-save | sed -n 's/^-/rule -/p'
  on_node "$1" find /etc/cni/net.d /opt/cni/bin /var/lib/cni /run/meshnet /run/netns /var/lib/meshnet 2>/dev/null | sed 's/^/file /'
}

# Streams between pods of neighbouring nodes, n1 → n2 → n3 → n1: a ping each 0.1 s, and one TCP connection. Begin; later end, which waits for them.
streams_begin() {
  local seconds=$1 all=($(nodes)) i from to
  STREAMS=$(mktemp -d) STREAM_PIDS=()
  for i in "${!all[@]}"; do
    from=${all[$i]} to=${all[$(((i + 1) % ${#all[@]}))]}
    to_address=$(address_of "tool-$to")
    k exec "tool-$to" -- sh -c 'iperf3 -s -1 -D'
    k exec "tool-$from" -- timeout $((seconds + 15)) ping -n -D -i 0.1 -w "$seconds" "$to_address" >"$STREAMS/ping-$from-$to" 2>&1 &
    STREAM_PIDS+=($!)
    k exec "tool-$from" -- timeout $((seconds + 30)) iperf3 -c "$to_address" -t "$seconds" -b 10M -i 0.5 >"$STREAMS/tcp-$from-$to" 2>&1 &
    STREAM_PIDS+=($!)
  done
  sleep 1
}
streams_end() { wait "${STREAM_PIDS[@]}" || true; }
# The longest time without an answer in a ping's output, in seconds.
longest_gap() {
  awk -F'[][]' '/bytes from/ { if (last) { gap = $2 - last; if (gap > most) most = gap } last = $2; n++ } END { if (n > 10) printf "%.2f", most }' "$1"
}
lost() { sed -n 's/.* \([0-9.]*\)% packet loss.*/\1/p' "$1"; }
