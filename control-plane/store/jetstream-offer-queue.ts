/** Offers on the work queue `WORK`: signed, one message a grant, taken by agents of one environment. */
import type { NatsConnection } from "nats";
import { OFFER_SIGNATURE_HEADER, type Offer } from "../../shared/wire/attempt.ts";
import {
  type OfferOwners,
  OWNERS_HEADER,
  OWNERS_PURPOSE,
  ownersHeader,
  signedOwners,
} from "../../shared/wire/offer-owners.ts";
import { STREAMS, subjects } from "../../shared/wire/subjects.ts";
import type { OfferQueue } from "../runs/ports.ts";
import { publishOnce } from "./publish.ts";

export class JetStreamOfferQueue implements OfferQueue {
  readonly #connection: NatsConnection;
  readonly #sign: (payload: Uint8Array, purpose?: string) => string;

  constructor(connection: NatsConnection, sign: (payload: Uint8Array, purpose?: string) => string) {
    this.#connection = connection;
    this.#sign = sign;
  }

  async publish(offer: Offer, owners?: OfferOwners): Promise<void> {
    const { runId, stepId, epoch } = offer.lease;
    const payload = Buffer.from(JSON.stringify(offer));
    await publishOnce(this.#connection, {
      what: `offer of step ${stepId} in run ${runId}`,
      stream: STREAMS.work,
      subject: subjects.work(offer.environment),
      payload,
      messageId: `${runId}/${stepId}/${epoch}`,
      headers: {
        [OFFER_SIGNATURE_HEADER]: this.#sign(payload),
        ...(owners ? { [OWNERS_HEADER]: this.#ownersHeader(payload, owners) } : {}),
      },
      mayBeLost: true, // the run owes it, and offers it again when nobody took it
    });
  }

  #ownersHeader(payload: Uint8Array, owners: OfferOwners): string {
    const json = Buffer.from(JSON.stringify(owners));
    return ownersHeader(json, this.#sign(signedOwners(payload, json), OWNERS_PURPOSE));
  }
}
