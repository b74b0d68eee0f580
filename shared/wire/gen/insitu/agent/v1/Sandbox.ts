// Original file: proto/insitu/agent/v1/agent.proto


export interface Sandbox {
  'boxes'?: (boolean);
  'summary'?: (string);
  'held'?: ({[key: string]: string});
  'notHeld'?: ({[key: string]: string});
  'unboxedUpTo'?: (string);
  'letsOut'?: (boolean);
  'runsContainers'?: (boolean);
}

export interface Sandbox__Output {
  'boxes': (boolean);
  'summary': (string);
  'held': ({[key: string]: string});
  'notHeld': ({[key: string]: string});
  'unboxedUpTo': (string);
  'letsOut': (boolean);
  'runsContainers': (boolean);
}
