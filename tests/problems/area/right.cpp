#include <cmath>
#include <cstdio>

int main() {
    double radius;
    if (std::scanf("%lf", &radius) == 1) std::printf("area %.9e\n", M_PI * radius * radius);
}
