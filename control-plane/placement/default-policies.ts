/**
 * The policies that hold when nobody has written others, and the schema that every policy set is checked against.
 *
 * A policy sees a step as its pipeline: steps of one pipeline that touch the same datasets are equal to it, so
 * ten thousand of them need one evaluation.
 */

export interface PolicyBundle {
  /** A schema in Cedar's own syntax. */
  schema: string;
  /** One Cedar policy for each rule, by the name that explanations give. */
  rules: Readonly<Record<string, string>>;
}

const SCHEMA = `
// A site. Its jurisdiction is the ISO 3166-1 alpha-2 code of the country whose law applies there.
entity Environment = { "jurisdiction": String };

// A body of data. "residency" holds country codes, with groups such as EU already spelled out.
entity Dataset = {
  "classification": String,
  "residency": Set<String>,
  "holders": Set<Environment>,
};

// A step of the pipeline that the entity is named after.
entity Step = { "pipeline": String };

// Whether the step may run in an environment at all.
action place appliesTo { principal: [Step], resource: [Environment], context: {} };

// Whether a step that runs in context.environment may touch a dataset.
action read, write appliesTo { principal: [Step], resource: [Dataset], context: { "environment": Environment } };
`;

export const DEFAULT_POLICIES: PolicyBundle = {
  schema: SCHEMA,
  rules: {
    baseline: `permit (principal, action, resource);`,
    holds: `
forbid (principal, action in [Action::"read", Action::"write"], resource)
unless { resource.holders.contains(context.environment) };`,
    residency: `
forbid (principal, action in [Action::"read", Action::"write"], resource)
unless { resource.residency.contains(context.environment.jurisdiction) };`,
  },
};
