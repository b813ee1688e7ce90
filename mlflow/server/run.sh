#!/bin/sh
# MLflow's tracking server with basic authentication: SQLite and a folder unless the environment names other places.
#   MLFLOW_AUTH_ADMIN_PASSWORD, MLFLOW_FLASK_SERVER_SECRET_KEY   needed; the second signs the web page's forms
#   HEPALIGN_MLFLOW_DATA        the folder (default: mlflow-server)
#   HEPALIGN_MLFLOW_DATABASE    such as postgresql+psycopg://mlflow@db/mlflow (default: SQLite in the folder)
#   HEPALIGN_MLFLOW_ARTIFACTS   such as s3://mlflow; the server alone needs the bucket's keys (default: in the folder)
#   HEPALIGN_MLFLOW_HOSTS       names it is called by (default: this machine)
# Further words go to `mlflow server`: mlflow/server/run.sh --port 5000
set -eu

: "${MLFLOW_AUTH_ADMIN_PASSWORD:?the password of the user admin, at least 12 characters}"
: "${MLFLOW_FLASK_SERVER_SECRET_KEY:?any long random word}"
data=${HEPALIGN_MLFLOW_DATA:-mlflow-server}
mkdir -p "$data"
data=$(cd "$data" && pwd)
database=${HEPALIGN_MLFLOW_DATABASE:-sqlite:///$data/mlflow.db}

# Users without a permission of their own read; the file may hold the database's password.
umask 077
MLFLOW_AUTH_CONFIG_PATH=$data/auth.ini
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = READ
database_uri = $(printf %s "$database" | sed 's/%/%%/g')
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI
export MLFLOW_AUTH_CONFIG_PATH MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false

exec mlflow server --app-name basic-auth \
  --backend-store-uri "$database" \
  --artifacts-destination "${HEPALIGN_MLFLOW_ARTIFACTS:-$data/artifacts}" \
  --allowed-hosts "${HEPALIGN_MLFLOW_HOSTS:-localhost:*,127.0.0.1:*}" \
  "$@"
