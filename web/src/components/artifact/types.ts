export interface Node {
  name: string;
  bytes: number;
  children: Node[];
}

export interface TensorRow {
  name: string;
  shape: number[];
  codec: string;
  group: number | null;
  settings: Record<string, unknown>;
  packed_bits_per_weight: number | null;
}

export interface ArtifactInfo {
  name: string;
  stage: string;
  parameters: number;
  bytes: number;
  ratio: number;
  ratio_vs_16bit: number;
  bits_per_weight: number;
  tree: Node;
  beside: { name: string; bytes: number }[];
  tensors: TensorRow[];
}

export interface ArtifactEntry {
  name: string;
  stage: string;
  attempt: number;
  passed: boolean | null;
  bytes: number;
  ratio: number;
  bits_per_weight: number;
}
