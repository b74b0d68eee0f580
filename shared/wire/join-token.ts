/** The one line that a person carries from `insitu join-token create` to the host of an agent. */
import { z } from "zod";
import { InsituError } from "../errors.ts";
import { Name } from "../model/names.ts";

const PREFIX = "insitu1.";

const JoinTokenText = z.object({
  /** Environment. */
  e: Name,
  /** `host:port` of the gateway. */
  g: z.string().regex(/^.+:\d{1,5}$/),
  /** Pin: `sha256:` and the hexadecimal SHA-256 of the CA's SubjectPublicKeyInfo. */
  p: z.string().regex(/^sha256:[0-9a-f]{64}$/),
  /** The secret. */
  s: z.string().min(16),
});

export interface JoinToken {
  environment: string;
  gateway: string;
  caPin: string;
  secret: string;
}

export function encodeJoinToken(token: JoinToken): string {
  const text = JSON.stringify({ e: token.environment, g: token.gateway, p: token.caPin, s: token.secret });
  return PREFIX + Buffer.from(text, "utf8").toString("base64url");
}

/** @throws token.invalid when the text is not a token, for example because a part of the line is missing */
export function decodeJoinToken(text: string): JoinToken {
  const trimmed = text.trim();
  const hint = "paste the whole line that `insitu join-token create` printed";
  if (!trimmed.startsWith(PREFIX)) {
    throw new InsituError("token.invalid", `a join token begins with "${PREFIX}"; ${hint}`);
  }
  let json: unknown;
  try {
    json = JSON.parse(Buffer.from(trimmed.slice(PREFIX.length), "base64url").toString("utf8"));
  } catch (err) {
    throw new InsituError("token.invalid", `the join token is damaged; ${hint}`, { cause: err });
  }
  const parsed = JoinTokenText.safeParse(json);
  if (!parsed.success) throw new InsituError("token.invalid", `the join token is incomplete; ${hint}`);
  const { e, g, p, s } = parsed.data;
  return { environment: e, gateway: g, caPin: p, secret: s };
}
