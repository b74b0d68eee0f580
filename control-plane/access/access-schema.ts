/** What access policies are written about: the Cedar schema that each rule is checked against. */
import { ENVIRONMENT_RIGHTS, PIPELINE_RIGHTS, RIGHTS, type Right } from "./rights.ts";

function actions(rights: readonly Right[], resources: string): string {
  const names = rights.map((right) => JSON.stringify(right)).join(", ");
  return `action ${names} appliesTo { principal: [User], resource: [${resources}], context: { "approved": Bool } };`;
}

const REST = RIGHTS.filter(
  (right) => !PIPELINE_RIGHTS.includes(right) && !ENVIRONMENT_RIGHTS.includes(right),
);

export const ACCESS_SCHEMA = `
// A group of people, as the identity provider or the maker of a token names it.
entity Group;

// The owner of pipelines.
entity Team;

// All of it: what a right is asked over that is about no pipeline and no environment.
entity Installation;

// Whoever calls: a person or a program.
entity User in [Group] = { "name": String };

entity Environment in [Installation] = { "name": String, "jurisdiction": String } tags String;

// "environments" are those in which placement lets at least one of its steps run.
entity Pipeline in [Team, Installation] = { "name": String, "environments": Set<Environment> };

// context.approved: a second person has approved this very request.
${actions(PIPELINE_RIGHTS, "Pipeline, Installation")}
${actions(ENVIRONMENT_RIGHTS, "Environment, Installation")}
${actions(REST, "Installation")}
`;

export const INSTALLATION = { type: "Installation", id: "insitu" } as const;
