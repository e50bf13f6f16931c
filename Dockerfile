# The image of Trilane.
#
#   docker build -t trilane .                                              with FreeTDS for SQL Server
#   docker build -t trilane --build-arg MSODBC=1 --build-arg ACCEPT_EULA=Y .   with Microsoft's driver 18 as well
#
# Microsoft's driver is under Microsoft's terms (MICROSOFT_ODBC_DRIVER_FOR_SQL_SERVER_LICENSE.txt in the image, below
# /opt/microsoft); ACCEPT_EULA=Y says that you accept them.
ARG MSODBC=0

FROM rust:1-bookworm AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends unixodbc-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# What the dependencies compiled to stays in the builder's cache, so a change of Trilane compiles Trilane only.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    cargo build --release --locked \
 && install -D target/release/trilane /out/trilane

FROM debian:bookworm-slim AS msodbc-0
RUN mkdir -p /opt/microsoft

# Microsoft's driver, from the Python package that carries it, checked against the hashes of its x86-64 and ARM64 form.
FROM debian:bookworm-slim AS msodbc-1
ARG ACCEPT_EULA=
RUN if [ "$ACCEPT_EULA" != Y ]; then \
      echo "MSODBC=1 needs --build-arg ACCEPT_EULA=Y: it says that you accept Microsoft's terms for its driver" >&2; exit 1; \
    fi
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3-pip \
 && rm -rf /var/lib/apt/lists/*
RUN printf '%s\n' 'mssql-python-odbc==18.6.2.2 \' \
      '--hash=sha256:f5ed985f6d9854345e3e65dbc38e0b574ff13d8e04e6a58492d37bb19e714553 \' \
      '--hash=sha256:4571228f62f97ffbf427b88f5bb85380dcc1bb6e086375daa52d83226e0f62c6' > /tmp/driver.txt \
 && pip download --quiet --no-deps --require-hashes --dest /tmp --requirement /tmp/driver.txt \
 && python3 -m zipfile -e /tmp/mssql_python_odbc-*.whl /tmp/driver \
 && mkdir -p /opt/microsoft \
 && mv /tmp/driver/mssql_python_odbc/libs/linux/debian_ubuntu/* /opt/microsoft/msodbcsql18 \
 && rm /opt/microsoft/msodbcsql18/lib/libodbcinst.so.2

# hadolint ignore=DL3006
FROM msodbc-${MSODBC} AS msodbc

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
      ca-certificates libgssapi-krb5-2 libsqliteodbc odbc-postgresql odbcinst tdsodbc tini unixodbc \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --system --gid 10001 trilane \
 && useradd --system --uid 10001 --gid trilane --home-dir /var/lib/trilane --shell /usr/sbin/nologin trilane \
 && install -d -o trilane -g trilane -m 700 /var/lib/trilane
COPY --from=msodbc /opt/microsoft /opt/microsoft
RUN for driver in /opt/microsoft/msodbcsql18/lib/libmsodbcsql-18.*; do \
      if [ -e "$driver" ]; then \
        printf '[ODBC Driver 18 for SQL Server]\nDescription=Microsoft ODBC Driver 18 for SQL Server\nDriver=%s\n' "$driver" \
          | odbcinst -i -d -r; \
      fi; \
    done
COPY --from=build /out/trilane /usr/local/bin/trilane

USER trilane
WORKDIR /var/lib/trilane
VOLUME /var/lib/trilane
# Inside a container loopback would serve nobody. Off loopback Trilane starts only with TRILANE_API_TOKENS.
ENV TRILANE_DATA_DIR=/var/lib/trilane TRILANE_HTTP_ADDR=0.0.0.0:8080
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=90s --retries=3 CMD ["trilane", "health"]
# tini takes in what commands of handlers leave behind.
ENTRYPOINT ["tini", "--", "trilane"]
