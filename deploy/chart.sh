#!/usr/bin/env bash
# chart.sh OUT: writes a Helm chart to the new folder OUT, for those who install by Helm. It is deploy/kubernetes/meshnet.yaml with a handful of its values
# replaced by settings, and nothing besides; with the settings as they come it gives that file, byte for byte (tests/k8s/checks/manifests).
#     deploy/chart.sh meshnet && helm install -n kube-system meshnet ./meshnet --set env.MESHD_MTU=1300
set -euo pipefail
[ $# = 1 ] && [ ! -e "$1" ] || { echo "usage: chart.sh OUT, a folder that is not there yet" >&2; exit 2; }
out=$(realpath -m "$1")
cd "$(dirname "$0")/.."
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
mkdir -p "$out/templates"
cat >"$out/Chart.yaml" <<T
apiVersion: v2
name: meshnet
version: $version
appVersion: $version
description: The network of a Kubernetes cluster, a sealed Ethernet without a store
type: application
kubeVersion: ">=1.20.0-0"
T
cat >"$out/values.yaml" <<T
image: localhost/meshnet:$version
# The range of all pods; kube-proxy's clusterCIDR must hold it.
range: 10.32.0.0/12
# Where the runtime looks for plugins and configurations.
binDir: /opt/cni/bin
confDir: /etc/cni/net.d
# More settings of meshd: MESHD_MTU: "1300", ...
env: {}
T
sed -e "s#localhost/meshnet:$version\$#{{ .Values.image }}#" \
  -e 's#value: 10.32.0.0/12}#value: {{ .Values.range }}}#' \
  -e 's#path: /opt/cni/bin,#path: {{ .Values.binDir }},#' -e 's#path: /etc/cni/net.d,#path: {{ .Values.confDir }},#' \
  -e '/MESHD_IPAM_RANGE/a\        {{- range $name, $value := .Values.env }}\n        - {name: {{ $name }}, value: {{ printf "%q" (print $value) }}}\n        {{- end }}' \
  deploy/kubernetes/meshnet.yaml >"$out/templates/meshnet.yaml"
