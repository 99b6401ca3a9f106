-- The table of the try-out in deploy/docker-compose.yml; the image runs this once on an empty volume.
CREATE TABLE docs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text NOT NULL, embedding real[]);
