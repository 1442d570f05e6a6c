# shellcheck shell=bash
# Two processes at a time, for scripts that set -e: `start COMMAND...`, then `finish_all`. If one
# fails, the script ends.
running=0
finish_one() {
  wait -n
  running=$((running - 1))
}
start() {
  "$@" &
  running=$((running + 1))
  if [ $running -ge 2 ]; then finish_one; fi
}
finish_all() {
  while [ $running -gt 0 ]; do finish_one; done
}
