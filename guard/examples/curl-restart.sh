#!/bin/sh
# Asks portguard's sidecar to restart a service and waits for the end of the run.
#   sh curl-restart.sh SERVICE
set -eu
service=${1:?usage: curl-restart.sh SERVICE}
socket=${PORTGUARD_SOCKET:-/run/portguard/portguard.sock}

ask() { curl --silent --show-error --fail-with-body --unix-socket "$socket" "$@"; }

answer=$(ask --request POST "http://portguard/v1/services/$service/restart")
run=$(printf '%s' "$answer" | sed -n 's/.*"run":"\([^"]*\)".*/\1/p')
echo "run $run"

result=$(ask "http://portguard/v1/runs/$run?wait=10m")
printf '%s' "$result" | sed -n 's/.*"outcome":"\([^"]*\)".*/\1/p'
case $result in
  *'"outcome":"restarted"'*) ;;
  *) exit 1 ;;
esac
