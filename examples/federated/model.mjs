/**
 * Softmax regression of the species on four measurements, by gradient descent over all rows at once.
 *
 * Starts from zero and draws nothing by chance, so the same rows always give the same weights.
 */
export const SPECIES = ["Adelie", "Chinstrap", "Gentoo"];

/**
 * Measurement, its usual value and its usual spread. Fixed beforehand from the literature's orders of magnitude:
 * means taken from the data would be one more thing to agree on between the sites.
 */
const FEATURES = [
  ["Beak Length (mm)", 44, 5.5],
  ["Beak Depth (mm)", 17, 2],
  ["Flipper Length (mm)", 200, 14],
  ["Body Mass (g)", 4200, 800],
];
const LEARNING_RATE = 0.5;

/** Rows with all measurements: `{ x: [1, …], species }`. */
export function examples(penguins) {
  return penguins
    .filter((penguin) => FEATURES.every(([name]) => typeof penguin[name] === "number"))
    .map((penguin) => ({
      x: [1, ...FEATURES.map(([name, usual, spread]) => (penguin[name] - usual) / spread)],
      species: SPECIES.indexOf(penguin.Species),
    }));
}

/** One row of weights per species. */
export function zeroWeights() {
  return SPECIES.map(() => new Array(FEATURES.length + 1).fill(0));
}

/** `steps` steps of gradient descent on the mean cross-entropy, from `weights`. */
export function train(weights, rows, steps) {
  let current = weights;
  for (let step = 0; step < steps; step++) {
    const gradient = zeroWeights();
    for (const { x, species } of rows) {
      probabilities(current, x).forEach((p, k) => {
        const error = p - (k === species ? 1 : 0);
        for (let j = 0; j < x.length; j++) gradient[k][j] += error * x[j];
      });
    }
    current = current.map((row, k) => row.map((w, j) => w - (LEARNING_RATE * gradient[k][j]) / rows.length));
  }
  return current;
}

/** McMahan et al., "Communication-efficient learning of deep networks from decentralized data" (2017): FedAvg. */
export function average(parts) {
  const total = parts.reduce((sum, { n }) => sum + n, 0);
  return zeroWeights().map((row, k) =>
    row.map((_, j) => parts.reduce((sum, { n, weights }) => sum + (n / total) * weights[k][j], 0)),
  );
}

/** `table[actual][predicted]`, by species. */
export function confusion(weights, rows) {
  const table = SPECIES.map(() => SPECIES.map(() => 0));
  for (const { x, species } of rows) {
    const p = probabilities(weights, x);
    table[species][p.indexOf(Math.max(...p))]++;
  }
  return table;
}

function probabilities(weights, x) {
  const scores = weights.map((row) => row.reduce((sum, w, j) => sum + w * x[j], 0));
  const highest = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - highest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}
