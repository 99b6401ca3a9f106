# Owns the image of the service: built with Rust on Debian, run on slim Debian by a user without rights.
FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked && strip target/release/ruvector

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --user-group --home-dir /var/lib/ruvector --create-home ruvector
COPY --from=build /src/target/release/ruvector /usr/local/bin/ruvector
USER ruvector
ENV RUVECTOR__STORAGE__DIR=/var/lib/ruvector \
    RUVECTOR__HTTP__LISTEN=0.0.0.0:8480
VOLUME /var/lib/ruvector
EXPOSE 8480
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["ruvector", "status"]
ENTRYPOINT ["ruvector"]
CMD ["serve", "--config", "/etc/ruvector/ruvector.toml"]
