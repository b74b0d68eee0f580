/** The jurisdictions that environments lie in and that residencies name. */

/** The day on which the lists below were true. They say nothing about later changes. */
export const JURISDICTIONS_AS_OF = "2023-04-27";

/** ISO 3166-1 alpha-2, the officially assigned codes. Source: iso-codes 4.15.0. */
const CODES: ReadonlySet<string> = new Set(
  `
  AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT
  BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH
  ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT
  HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS
  LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA NC NE NF NG NI
  NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW SA SB SC SD SE SG
  SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG
  UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW
`
    .trim()
    .split(/\s+/),
);

/**
 * Member states, since the United Kingdom left on 2020-02-01 (Treaty on European Union, article 52).
 *
 * Territories with a code of their own (GF, RE, AX, …) are not in it, whatever law holds there: a residency
 * that means them names them, so that nothing moves there by accident.
 */
const EU = "AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK".split(" ");

/** The EU and three members of EFTA; Switzerland is not one of them (EEA Agreement, article 126). */
const EEA = [...EU, "IS", "LI", "NO"];

/** Groups that a residency may name in place of their members. */
export const JURISDICTION_GROUPS: ReadonlyMap<string, readonly string[]> = new Map([
  ["EU", EU],
  ["EEA", EEA],
]);

/** All country codes, in order. */
export const JURISDICTIONS: readonly string[] = [...CODES].sort();

/** Whether `code` is a country's code, in upper case. Groups are not: an environment lies in one country. */
export function isJurisdiction(code: string): boolean {
  return CODES.has(code);
}

/** Whether `entry` may stand in a residency: a country's code or a group. */
export function isResidency(entry: string): boolean {
  return CODES.has(entry) || JURISDICTION_GROUPS.has(entry);
}

/**
 * Spells out the groups of a residency.
 *
 * What is neither a country nor a group is left out, so that it admits no place at all.
 */
export function expandResidency(list: readonly string[]): ReadonlySet<string> {
  return new Set(
    list.flatMap((entry) => JURISDICTION_GROUPS.get(entry) ?? (CODES.has(entry) ? [entry] : [])),
  );
}
