/** What `insitu-agent policy init` writes: allows nothing until somebody says what. */
export const TEMPLATE = `# What this site allows, whatever the control plane asks for. See docs/security/site-policy.md.
#
# The file belongs to root or to the agent's user, and nobody else may write to it or to a directory above it.
# Every list says what is allowed: what is not named is refused, and an empty list refuses everything. In texts, * stands for any characters.
# The agent looks at the file every two seconds. A file with a fault changes nothing: the one before stays in force.
#
#   insitu-agent policy check --site-policy FILE --pipeline pipeline.yaml --step fit
#
# tells what it makes of a step.
version: 1

# Names of pipelines. They are the control plane's word: do not rely on them alone.
pipelines:
#  - penguins
#  - "nightly-*"

# Of these, only what one of these keys has signed (insitu sign); without this, signatures are not looked at. See docs/security/signed-pipelines.md.
# signedPipelines:
#   maxAge: 90d
#   keys:
#     - name: research
#       pipelines: ["nightly-*"]
#       publicKey: |
#         -----BEGIN PUBLIC KEY-----
#         MCowBQYDK2VwAyEASGXeIPbYVUsV4RWL3PWjQY774+kj4rLnAQJvxASjyN8=
#         -----END PUBLIC KEY-----

# Who has to answer for the pipeline: its owner, a person or a team, as the control plane knows it. Without this, anybody.
# owners:
#   - statistics

# "process" runs a command, "container" a container image, "noop" does nothing.
executors:
#  - process

# Container images, by their digests. What an image runs by itself is allowed with it; what a step gives it as command or
# arguments has to be among the commands as well.
images:
#  - sha256:0000000000000000000000000000000000000000000000000000000000000000

# Commands, argument by argument. "**" as the last stands for any further arguments.
# A program that runs what it is told (sh -c, node -e, python -c) allows everything when its arguments are open.
commands:
#  - [node, statistics.mjs]
#  - [/usr/bin/duckdb, -readonly, "**"]

# Files that steps bring along: the programs that the commands above run. With sha256, exactly this content.
files:
#  - path: statistics.mjs
#    sha256: sha256:0000000000000000000000000000000000000000000000000000000000000000
#  - "*.sql"

# Environment variables that steps bring along. PATH, LD_PRELOAD, NODE_OPTIONS and their like decide what a command is.
env:
#  - REPORT_LANGUAGE

# Datasets. The first entry that names one decides. A text allows reading.
datasets:
#  - penguins
#  - { name: results, access: read-write }
#  # Refused when the control plane has another owner for it.
#  - { name: registry, owner: registry-team }
#  # Refused when the control plane calls it less than restricted: by that is decided what leaves the site.
#  - { name: patients, classification: restricted }

# Where steps may be let out to that ask for it, host:port each; *.site.example is all names below it, :* any port.
# The agent's own configuration must allow it as well (sandbox.egress), so that two people have to.
egress:
#  - db.site.example:5432

# When work is taken; without this, at any time. Outside these hours the agent takes none, and what runs goes on.
# hours:
#   - { days: [mon, tue, wed, thu, fri], from: "19:00", to: "07:00", zone: Europe/Zurich }
#   - { days: [sat, sun], from: "00:00", to: "24:00", zone: Europe/Zurich }

# Cedar policies in a file beside this one, for what lists cannot say. They are asked besides: both have to allow a step.
# cedar: policy.cedar

# What one step may ask for at the most; without this, as much as it says.
# maximum:
#   timeout: 2h
#   outputBytes: 64KiB         # of its outputs together, which leave the site
#   artifactBytes: 1GiB        # of its artifacts together, which stay
#   memory: 4GiB               # this and what follows: a step that does not say how much it takes is refused
#   cpu: 2
#   processes: 256
#   openFiles: 1024
#   fileSize: 1GiB
`;
