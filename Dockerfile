# Built in one stage, run in another, as a user without rights.
ARG BUILDER=rust:1-bookworm
ARG RUNTIME=debian:bookworm-slim

FROM ${BUILDER} AS build
LABEL pontoon.stage=build
ARG PROFILE=release
# 1: with a profile of its own work (bench/pgo), in three times the time.
ARG PGO=0
WORKDIR /src
# The dependencies first, with nothing of our own: they are built again only when Cargo.lock changes.
COPY Cargo.toml Cargo.lock ./
RUN mkdir src && touch src/lib.rs && echo 'fn main() {}' | tee src/main.rs > build.rs \
    && if [ ${PGO} = 1 ]; then cargo fetch --locked; else cargo build --locked --profile ${PROFILE} --bin pontoon; fi
COPY build.rs ./
COPY proto proto
COPY src src
COPY bench bench
# `dev` builds into `debug`.
RUN touch build.rs src/lib.rs src/main.rs \
    && mkdir -p /out \
    && if [ ${PGO} = 1 ]; then \
        { ! command -v rustup >/dev/null || rustup component add llvm-tools; } \
        && bench/pgo --output /out/pontoon \
        && rm -rf target/pgo; \
    else \
        cargo build --locked --profile ${PROFILE} --bin pontoon \
        && cp target/$(test ${PROFILE} = dev && echo debug || echo ${PROFILE})/pontoon /out/pontoon; \
    fi

FROM ${RUNTIME}
RUN groupadd -g 10001 pontoon \
    && useradd -u 10001 -g pontoon -M -d /var/lib/pontoon pontoon \
    && mkdir -p /var/lib/pontoon \
    && chown pontoon:pontoon /var/lib/pontoon
COPY --from=build /out/pontoon /usr/local/bin/pontoon
# `docker exec … etcdctl …`, as people are used to.
RUN ln -s pontoon /usr/local/bin/etcdctl
USER 10001:10001
VOLUME /var/lib/pontoon
EXPOSE 2379 2380
HEALTHCHECK --interval=2s --timeout=3s --start-period=5s --retries=10 CMD ["pontoon", "health"]
ENTRYPOINT ["pontoon"]
CMD ["serve"]
