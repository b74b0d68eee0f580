/** Sets the answer of a run beside the answer over the pooled data. */

/**
 * @param {{ name: string, unit: string, federated: number, pooled: number }[]} rows
 * @param {number} tolerance largest relative difference that still counts as equal
 */
export function comparison(rows, tolerance) {
  const difference = Math.max(...rows.map(relativeDifference));
  // Written so that NaN is unequal.
  return { rows, tolerance, difference, equal: difference <= tolerance };
}

function relativeDifference({ federated, pooled }) {
  if (federated === pooled) return 0;
  return Math.abs(federated - pooled) / Math.max(Math.abs(federated), Math.abs(pooled));
}
