# Settings and helpers of everything in this folder; read by `.`, not run. Each value can be set in the environment before `up`;
# what is said once the cluster is up comes from that cluster.
: "${TAG:=mk8s}"                          # starts the name of each namespace, cgroup and folder made here: two tags, two clusters side by side
: "${RUN:=/run/meshnet-k8s/$TAG}"         # certificates, etcd, logs, pids, the nodes' upper layers: a tmpfs
if [ -z "${BUILDING:-}" ] && [ -e "$RUN/settings" ]; then . "$RUN/settings"; fi
: "${CACHE:=/var/cache/meshnet-k8s}"      # what `build` makes, and its sources
: "${BIN:=$CACHE/bin}"
: "${IMAGES:=$CACHE/images}"              # imported by every node at its start
: "${DATA:=/var/lib/meshnet-k8s/$TAG}"    # containerd's and the kubelet's: a file system that may be an overlay's upper layer
: "${CONTAINERD:=/usr/bin}"               # folder of containerd; `build containerd2` makes $CACHE/containerd2
: "${CNI:=none}"                          # none: a DaemonSet brings it; bridge: reference plugins and static routes
: "${IPTABLES:=nft}"                      # nft or legacy: the nodes' iptables
: "${POD_CIDR:=10.32.0.0/12}"             # kube-proxy's clusterCIDR
: "${SERVICE_CIDR:=10.96.0.0/16}"
: "${DNS_ADDRESS:=10.96.0.10}"
: "${API_ADDRESS:=10.96.0.1}"             # of the service `kubernetes`
: "${UNDERLAY:=172.30.0}"                 # a /24: node i is .i, the router .254
: "${OUTSIDE:=192.0.2}"                   # a /24 behind the router: the host outside is .2; kubectl and e2e.test run there
: "${UNDERLAY_MTU:=1500}"
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CONTROLLERS="cpu cpuacct cpuset memory devices freezer blkio pids"

die() { echo "k8s: $*" >&2; exit 1; }
# A command on the host outside the cluster, as the cluster's administrator.
outside() { ip netns exec "$TAG-out" env PATH="$BIN:$PATH" KUBECONFIG="$RUN/pki/admin.kubeconfig" "$@"; }
kc() { outside "$BIN/kubectl" --request-timeout=60s "$@"; }
# A command in all namespaces of a node: on_node n1 COMMAND...
on_node() { "$HERE/node" exec "$@"; }
nodes() { seq -f 'n%g' "$(cat "$RUN/nodes")"; }
# wait_for SECONDS COMMAND...: until it succeeds; when the time is up, fails and says what COMMAND said last.
wait_for() {
  local end=$((SECONDS + $1)) said
  shift
  until said=$("$@" 2>&1); do
    if [ "$SECONDS" -ge "$end" ]; then echo "$said"; return 1; fi
    sleep 0.2
  done
}
now_ms() { date +%s%3N; }
