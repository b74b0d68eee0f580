/** Why a step does not get a secret. Its message is shown to people, also at the centre, and never holds a value. */
export class SecretError extends Error {
  /** `missing`: somebody has to change something. `unavailable`: where it comes from is away, and may be back. */
  readonly kind: "missing" | "unavailable";

  constructor(kind: SecretError["kind"], message: string) {
    super(message);
    this.kind = kind;
  }
}

export const SECRET_MAX_BYTES = 16 * 1024;
