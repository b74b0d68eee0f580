/** What the agent asks of its site's policy. */
import type { Offer } from "../../shared/wire/attempt.ts";
import type { OfferOwners } from "../../shared/wire/offer-owners.ts";

/** The code of an outcome that the site's own policy has refused. */
export const VETO = "policy.veto";

export type SiteDecision =
  /** `digest`: of the policy that was asked. */
  | { kind: "allow"; digest: string }
  | { kind: "veto"; digest: string; message: string }
  /** Now no offer is taken at all. */
  | { kind: "closed"; reason: string };

export interface OfferPolicy {
  /** `owners`: who answers for what it names; undefined when the control plane does not say. */
  decide(offer: Offer, owners?: OfferOwners): Promise<SiteDecision>;
}
