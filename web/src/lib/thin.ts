/** Fewer points for a line: as many as a small chart has pixels to show. */

export type Point = readonly [number, number];

/**
 * At most about `most` points of a line, in their order. Of each stretch the lowest and the highest stay, and with them
 * every spike; so do the first and the last point.
 */
export function thinned(points: readonly Point[], most = 200): readonly Point[] {
  if (points.length <= most) return points;
  const stretch = Math.ceil((2 * points.length) / most);
  const kept = new Set<number>([0, points.length - 1]);
  for (let start = 0; start < points.length; start += stretch) {
    let [low, high] = [start, start];
    for (let index = start; index < Math.min(start + stretch, points.length); index += 1) {
      if (height(points, index) < height(points, low)) low = index;
      if (height(points, index) > height(points, high)) high = index;
    }
    kept.add(low).add(high);
  }
  return [...kept].sort((a, b) => a - b).map((index) => points[index] as Point);
}

function height(points: readonly Point[], index: number): number {
  return (points[index] as Point)[1];
}
