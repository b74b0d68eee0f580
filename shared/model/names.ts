import { z } from "zod";

/** Resource names: RFC 1123 labels, so that they are safe in subjects, paths, URIs and DNS. */
export const NAME_PATTERN = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;
export const Name = z
  .string()
  .regex(
    NAME_PATTERN,
    "lower-case letters, digits and '-', at most 63, starting and ending with a letter or digit",
  );

/** Names that become environment variables or files in a step: outputs, artifacts, parameters. */
export const FIELD_PATTERN = /^[a-zA-Z][a-zA-Z0-9_-]{0,62}$/;
export const FieldName = z
  .string()
  .regex(FIELD_PATTERN, "a letter, then letters, digits, '_' or '-', at most 63");

/** Environment variables that a step asks for. */
export const VARIABLE_PATTERN = /^[A-Za-z_][A-Za-z0-9_]{0,62}$/;

/** `sha256:` and 64 hexadecimal digits. */
export const Digest = z.string().regex(/^sha256:[0-9a-f]{64}$/, "sha256: and 64 hexadecimal digits");
