#!/usr/bin/env bash
# Sets this clone up, so that what is measured is what its sources say, and runs a benchmark suite.
#
#   npm run bench -- data-plane                  a table
#   npm run --silent bench -- data-plane --json  one JSON object
#   npm run bench -- --help                      the suites and their options
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

scripts/setup.sh
exec node dist/bench/main.js "$@"
