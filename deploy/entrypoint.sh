#!/bin/sh
# Start a command of the image: passwords from secret files become variables, and Dagster's settings get their numbers.
set -eu
if [ -n "${PGPASSWORD_FILE:-}" ]; then
    PGPASSWORD="$(cat "$PGPASSWORD_FILE")"
    export PGPASSWORD
fi
# Dagster takes no `env:` for these two limits. The file gets its name when it is complete.
gpus="${KRONOS_GPUS:-1}"
case "$gpus" in
    *[!0-9]* | 0 | "") echo "error: KRONOS_GPUS is '$gpus', and a whole number from 1 on is needed." >&2; exit 2 ;;
esac
per_gpu="${KRONOS_TRAININGS_PER_GPU:-1}"
case "$per_gpu" in
    [1-9] | [1-5][0-9] | 6[0-4]) ;;
    *) echo "error: KRONOS_TRAININGS_PER_GPU is '$per_gpu', and a whole number from 1 to 64 is needed." >&2; exit 2 ;;
esac
trainings=$((gpus * per_gpu))
mkdir -p "$DAGSTER_HOME"
sed -e "s/^\( *default_limit:\) .*/\1 $trainings/" -e "s/^\( *max_concurrent_runs:\) .*/\1 $((trainings + 3))/" \
    "$(dirname "$0")/dagster.yaml" >"$DAGSTER_HOME/.dagster.yaml.$$"
mv -f "$DAGSTER_HOME/.dagster.yaml.$$" "$DAGSTER_HOME/dagster.yaml"
exec "$@"
